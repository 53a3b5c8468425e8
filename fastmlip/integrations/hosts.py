"""The hosts there are, and what is asked of all of them in turn."""

from __future__ import annotations

from pathlib import Path

import torch

from fastmlip.integrations import allegro, nequip
from fastmlip.integrations.host import Host, HostModel, Verdict

HOSTS: tuple[Host, ...] = (allegro.HOST, nequip.HOST)


def judge(module: torch.nn.Module, model: torch.nn.Module) -> tuple[Host, Verdict] | None:
    """What becomes of a module of ``model``, and the host that knows it: the first in the list."""
    for host in HOSTS:
        if verdict := host.judge(module, model):
            return host, verdict
    return None


def describe(model: torch.nn.Module) -> HostModel:
    """A model in memory, or a ``ModuleDict`` of a single one, with what it takes to feed it.

    Raises:
        TypeError: no host knows it, or they are several.
    """
    found = models_in(model) if isinstance(model, torch.nn.ModuleDict) else _described(model)
    if len(found) == 1:
        return found[0]
    if found:
        raise TypeError(f"model: expected one model, got the models {', '.join(model)}")  # type: ignore[arg-type]
    raise TypeError(f"model: expected {_takes()}; got {type(model).__name__}")


def models_in(module: torch.nn.Module) -> list[HostModel]:
    """The models in a module, itself perhaps, that a host can feed."""
    return _described(module) or [m for child in module.children() for m in models_in(child)]


def _described(module: torch.nn.Module) -> list[HostModel]:
    return [found for host in HOSTS if (found := host.describe(module))][:1]


def load(path: str | Path, dtype: str | None = None, device: str = "cpu") -> HostModel:
    """The stock model of a file, modifiers that only accelerate left out; in evaluation mode.

    Args:
        path: a config (its model is built, not trained), a checkpoint, a package or a compiled
            model.
        dtype: ``float32`` or ``float64``, of a config or a checkpoint, in place of their own.
        device: where it shall run.

    Raises:
        ValueError: an unknown kind of file; a dtype for a file that brings its own.
    """
    path = Path(path)
    if dtype not in (None, "float32", "float64"):
        raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    for host in HOSTS:
        if found := host.load(path, dtype, device):
            found.model.to(device).eval()
            return found
    raise ValueError(f"{path}: expected {_takes()}")


def _takes() -> str:
    return ", or ".join(host.takes for host in HOSTS if host.takes)

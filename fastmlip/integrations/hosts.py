"""The hosts there are, and what is asked of all of them in turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from fastmlip.integrations import allegro, mace, nequip, sevennet
from fastmlip.integrations.host import Host, HostModel, Verdict

HOSTS: tuple[Host, ...] = (allegro.HOST, mace.HOST, nequip.HOST, sevennet.HOST)


class Judged(NamedTuple):
    """A module of a model that a host knows, and what becomes of it."""

    path: str
    module: torch.nn.Module
    host: Host
    verdict: Verdict


def judge(model: torch.nn.Module) -> Iterator[Judged]:
    """The modules of ``model`` that a host knows, in the model's order; of several hosts, the first
    in the list that knows a module."""
    hosts = [host for host in HOSTS if host.has(model)]
    for path, module in model.named_modules():
        verdicts = ((host, host.judge(module, model)) for host in hosts)
        found = next(((host, verdict) for host, verdict in verdicts if verdict), None)
        if found is not None:
            yield Judged(path, module, *found)


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

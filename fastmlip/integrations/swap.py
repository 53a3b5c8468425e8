"""``accelerate`` a model in memory, and say what was swapped, what was not, and why.

A host package's folder beside this file (:mod:`~fastmlip.integrations.nequip`) knows modules by
their structure and not by their class, because models from packages bring copies of the classes.
It has three functions: ``judge``, ``replace`` and ``after_swap``.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple, TypeVar

import torch

from fastmlip.integrations import nequip

HOSTS = (nequip,)
READY, SWAPPED, KEPT = "ready", "swapped", "kept"

Model = TypeVar("Model", bound=torch.nn.Module)


class Row(NamedTuple):
    """One module that fastmlip knows: ``ready`` to swap, ``swapped``, or ``kept`` for a reason."""

    path: str
    module: str
    status: str
    reason: str


def accelerate(model: Model) -> Model:
    """Swap fastmlip's modules into ``model``, in place, and return it.

    Parameters, buffers and state-dict keys stay as they are, so checkpoints of the model before
    and after are the same. Calling it again changes nothing.

    Raises:
        ValueError: nothing in the model can be swapped; the message says why.
        TypeError: not a ``torch.nn.Module``.
    """
    rows = report(model)
    kept = [row for row in rows if row.status == KEPT]
    if len(kept) == len(rows):
        reasons = "; ".join(f"{row.path or 'the model itself'}: {row.reason}" for row in kept)
        raise ValueError(
            f"nothing to accelerate in {type(model).__name__}: "
            + (
                reasons
                or "it has no module that fastmlip knows (such as NequIP's TensorProductScatter)"
            )
        )
    if kept:
        reasons = "; ".join(f"{row.path}: {row.reason}" for row in kept)
        warnings.warn(f"accelerate left {len(kept)} modules as they were: {reasons}", stacklevel=2)
    new: dict[torch.nn.Module, torch.nn.Module] = {}
    for module in model.modules():
        for host in HOSTS:
            verdict = host.judge(module, model)
            if verdict and verdict[0] == READY and module is not model:
                new[module] = host.replace(module, model)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    if new:
        for host in HOSTS:
            host.after_swap(model)
    return model


def report(model: torch.nn.Module) -> list[Row]:
    """A row for every module of ``model`` that fastmlip knows, in the model's order."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}; a compiled model "
            "cannot be changed any more, name the modifier when compiling it"
        )
    rows = []
    for path, module in model.named_modules():
        for host in HOSTS:
            verdict = host.judge(module, model)
            if verdict and not path and verdict[0] == READY:
                verdict = KEPT, "it cannot be swapped in place, pass the model that holds it"
            if verdict:
                rows.append(Row(path, type(module).__name__, *verdict))
    return rows


def summary(model: torch.nn.Module) -> list[Row]:
    """Print and return a row for every module of ``model`` that fastmlip knows."""
    from rich.console import Console
    from rich.table import Table

    rows = report(model)
    table = Table("module", "class", "status", "why", title=f"fastmlip in {type(model).__name__}")
    for row in rows:
        table.add_row(*row)
    if not rows:
        table.caption = "no module that fastmlip knows"
    Console().print(table)
    return rows

"""``accelerate`` a model in memory, and say what was swapped, what was not, and why."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, TypeVar

import torch

from fastmlip.integrations.gpu import NOT_TIMED, is_on_gpu
from fastmlip.integrations.host import KEPT, READY, Verdict
from fastmlip.integrations.hosts import HOSTS, judge
from fastmlip.integrations.self_check import same_numbers, undone_on_error

Model = TypeVar("Model", bound=torch.nn.Module)


class Row(NamedTuple):
    """One module that fastmlip knows: ``ready`` to swap, ``swapped``, or ``kept`` for a reason."""

    path: str
    module: str
    status: str
    reason: str


def accelerate(
    model: Model, per_edge_gradients: bool = False, *, self_check: bool | None = None
) -> Model:
    """Swap fastmlip's modules into ``model``, in place, and return it.

    Parameters, buffers and state-dict keys stay as they are, so checkpoints of the model before
    and after are the same. Calling it again changes nothing, but may set ``per_edge_gradients``.

    Modules with hooks that the swapped form would not run are kept, and so are modules with
    adapters inside. If these come later, the host's own forward runs there, or the call raises an
    error: in tabulated models, in Allegro's layers, and where a hook on the edge embedding asks for
    a field that is computed later. Constants that are no parameters are read now.

    Args:
        model: a model, or modules that hold some.
        per_edge_gradients: set it if you differentiate the energy with respect to edge vectors
            yourself, for example for virials of single atoms, in a model that also computes forces
            from positions. Forces and the total stress do not need it: for them, an edge and its
            reverse share one gradient, and ``torch.autograd.grad`` with respect to the
            ``edge_vectors`` of the output raises an error. Where edge vectors are given, or the
            model computes no forces, every edge has its own gradient anyway.
        self_check: whether energies and forces of four made-up atoms are compared before and after.
            Default: on a CPU, where it takes a fraction of a second. :func:`fastmlip.check` is what
            compares thoroughly.

    Raises:
        ValueError: nothing in the model can be swapped; the message says why.
        TypeError: not a ``torch.nn.Module``.
        SelfCheckError: energies or forces differ. The model is left as it was.
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
    if any(row.status == READY for row in rows):
        if is_on_gpu(model):
            warnings.warn(NOT_TIMED, stacklevel=2)
        with undone_on_error(model), same_numbers(model, self_check):
            _swap(model)
    part: Any
    if per_edge_gradients:
        for part in model.modules():
            if hasattr(part, "per_edge_gradients"):
                part.per_edge_gradients = True
    return model


def _swap(model: torch.nn.Module) -> None:
    new: dict[torch.nn.Module, torch.nn.Module] = {}
    ready = [one for one in judge(model) if one.verdict.status == READY]
    in_place = [one for one in ready if one.host.swap_of(one.module).in_place]
    for one in ready:
        if one.module is not model and one not in in_place:
            new[one.module] = one.host.replace(one.module, model)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    for one in in_place:
        one.host.replace(one.module, model)
    for host in HOSTS:
        host.after_swap(model)


def report(model: torch.nn.Module) -> list[Row]:
    """A row for every module of ``model`` that fastmlip knows, in the model's order."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}; a compiled model "
            "cannot be changed any more, name the modifier when compiling it"
        )
    rows = []
    for path, module, host, verdict in judge(model):
        if not path and verdict.status == READY and not host.swap_of(module).in_place:
            why = "it cannot be swapped in place, pass the model that holds it"
            verdict = Verdict(KEPT, why)
        rows.append(Row(path, type(module).__name__, *verdict))
    return rows


def summary(model: torch.nn.Module) -> list[Row]:
    """Print and return a row for every module of ``model`` that fastmlip knows."""
    from rich.console import Console
    from rich.table import Table

    rows = report(model)
    table = Table(title=f"fastmlip in {type(model).__name__}")
    for column in ("module", "class", "status", "why"):
        table.add_column(column, overflow="fold")  # never cut: a path may be all there is to see
    for row in rows:
        table.add_row(*row)
    if not rows:
        table.caption = "no module that fastmlip knows"
    Console().print(table)
    return rows

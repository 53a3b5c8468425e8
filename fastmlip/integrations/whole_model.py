"""Whole models that are swapped in place: what those of several hosts have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fastmlip.integrations import inner, refine
from fastmlip.integrations.derived import Derived
from fastmlip.integrations.host import TOLERANCE, HostModel
from fastmlip.nn.radial_spline import RadialSpline

Function = Callable[[torch.Tensor], torch.Tensor]
USUAL = 10.0  # eV/Angstrom, of structures that are simulated


class WholeModel(Derived):
    """Base of the mixins. ``plan()`` says what runs in them: its ``reason`` is why the host's
    forward runs, ``otherwise``, and empty where it does not.

    Attributes:
        per_edge_gradients: whether gradients with respect to edge vectors are to be every edge's
            own in any case.
    """

    per_edge_gradients: bool
    look: inner.Look
    tabulated: list[str]  # kinds of its modules when it was tabulated
    table_metadata: dict[str, str]

    otherwise = ""

    @property
    def remark(self: Any) -> str:
        """For the summary."""
        if reason := self.plan().reason:
            return f"{self.otherwise}: {reason}"
        if self.tabulated:
            return refine.remark(self.table_metadata)
        return "per_edge_gradients" if self.per_edge_gradients else ""

    def __prepare_scriptable__(self: Any) -> torch.nn.Module:
        if self.tabulated:
            raise RuntimeError("a tabulated model cannot be scripted: script the exact one")
        return super().__prepare_scriptable__()


def begin(network: Any) -> None:
    """Give a model that was just swapped what :class:`WholeModel` says that it has."""
    network.per_edge_gradients, network.look = False, inner.Look()
    network.tabulated, network.table_metadata = [], {}


def outdated(network: Any) -> str:
    """Why its tables are not those of its modules any more; empty where they are, or are not
    there."""
    if network.tabulated and _kinds(network) != network.tabulated:
        return "modules that its tables were made of were changed"
    return ""


def _kinds(network: Any) -> list[str]:
    """Of all modules: those that tables know nothing of are others."""
    return [type(module).__name__ for module in network.modules()]


def put_tables(
    network: Any,
    host: HostModel,
    layers: list[Any],
    functions: list[list[Function]],
    fit: Callable[[int], None],
    forget: Callable[[], None],
    tol: float | None,
    structures: Iterable[Any] | None,
) -> None:
    """Refine the tables of a model until forces agree, and keep what was reached.

    Args:
        network: the model, whose layers can run in one forward.
        host: how it is fed.
        layers: what has a ``spline``.
        functions: of each layer and each piece of the range, what its spline stands for.
        fit: gives the layers splines of so many intervals.
        forget: takes them away.
        tol: largest error of a force component, eV/Angstrom.
        structures: to compare forces on, or None.
    """
    tol = refine.positive(TOLERANCE if tol is None else tol)
    network.requires_grad_(False).eval()
    forget()  # of a model that has tables: forces are compared with those of its networks
    try:
        found = refine.refine(
            host, fit, tol, structures, roundings=refine.ROUNDINGS * (1 + len(layers)),
            large=refine.LARGE, usual=USUAL,
        )  # fmt: skip
    except BaseException:
        forget()
        raise
    errors = [
        RadialSpline.error(layer.spline.coefficients(kind), piece)
        for layer, pieces in zip(layers, functions, strict=True)
        for kind, piece in enumerate(pieces)
    ]
    network.table_metadata = found.metadata(tol, errors)
    network.tabulated, network.look = _kinds(network), inner.Look()
    refine.refuse_states(network)

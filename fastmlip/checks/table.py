"""The table of checks: their names, what they compare, and how far off a healthy model may be."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from fastmlip.checks import measure
from fastmlip.checks.context import Context
from fastmlip.checks.measure import Errors
from fastmlip.checks.model import Side

AUTOGRAD, FORCES, STOCK, TRAINING = "autograd", "forces", "stock", "training"
BATCHES, COMPILED, INVERSION = "batches", "compiled", "inversion"


class Check(NamedTuple):
    """One row. Tolerances are relative, by the dtype of the network; a model may be off by twice
    what stock is off by itself, too, up to ten times the tolerance."""

    name: str
    what: str
    float64: float
    float32: float
    measure: Callable[[Context, Side], Errors]
    needs: tuple[str, ...] = ()
    curvature: bool = False  # whether it compares second derivatives with stock

    def tolerance(self, context: Context) -> float:
        """Against stock, a tabulated model may be off by what its tables were made for, too."""
        own = self.float64 if context.dtype is torch.float64 else self.float32
        return own + context.table_error if STOCK in self.needs else own

    def missing(self, context: Context) -> str:
        """Why a model cannot be checked for this; empty where it can."""
        side = context.fused
        compiled = side.host.compiled
        if STOCK in self.needs and context.stock is None:
            return "a compiled model has no stock form; name a model to compare it with (--against)"
        if self.curvature and context.table_error:
            return "tables have a tolerance of forces, not of their derivatives"
        sides = [side] if STOCK not in self.needs else [side, context.stock]
        if AUTOGRAD in self.needs and any(s.host.compiled for s in sides if s):
            return "compiled models have no derivatives beyond forces"
        if TRAINING in self.needs and not side.trainable:
            return "it has no trainable parameters"
        if FORCES in self.needs and not context.has_forces:
            return "it computes no forces"
        if COMPILED in self.needs and not compiled:
            return "for compiled models only, the check before is sharper"
        if INVERSION in self.needs and not side.host.has_inversion:
            return "the model has the symmetry of rotations alone: its irreps have no parities"
        if BATCHES in self.needs and compiled:
            return "compiled models take what they were compiled for"
        return ""


OPERATORS = "operators"  # the name of a check without a measure: what ran at all


CHECKS = (
    Check("signal", "energies depend on positions", 0.0, 0.0, measure.signal),
    Check("energies", "against stock", 1e-10, 2e-5, measure.parity("energies"), (STOCK,)),
    Check("forces", "against stock", 1e-10, 2e-5, measure.parity("forces"), (STOCK, FORCES)),
    Check("stress", "against stock", 1e-10, 2e-5, measure.parity("stress"), (STOCK, FORCES)),
    Check(
        "one-sided edges", "all three, a quarter of the edges left out, against stock",
        1e-10, 2e-5, measure.one_sided, (STOCK,),
    ),
    Check(
        "frozen parameters", "the four above, as a compiled model computes them",
        1e-10, 2e-5, measure.frozen, (STOCK, TRAINING),
    ),
    Check(
        "parameter gradients", "of a loss on energies, forces and stress, against stock",
        1e-9, 1e-4, measure.gradients, (STOCK, AUTOGRAD, TRAINING), curvature=True,
    ),
    Check(
        "Hessian", "times random displacements, against stock",
        1e-9, 1e-4, measure.hessian, (STOCK, AUTOGRAD, FORCES), curvature=True,
    ),
    Check(
        "force differences", "against finite differences of the energy",
        1e-6, 2e-3, measure.forces_by_differences, (FORCES,),
    ),
    Check(
        "stress differences", "against finite differences of the energy under strain",
        1e-6, 2e-3, measure.stress_by_differences, (FORCES,),
    ),
    Check(
        "gradient differences", "parameter gradients against finite differences of the loss",
        1e-6, 1e-2, measure.gradients_by_differences, (AUTOGRAD, TRAINING),
    ),
    Check(
        "Hessian differences", "against finite differences of forces",
        1e-6, 5e-3, measure.hessian_by_differences, (AUTOGRAD, FORCES),
    ),
    Check(
        "Hessian symmetry", "u H v = v H u",
        1e-10, 2e-5, measure.hessian_symmetry, (AUTOGRAD, FORCES),
    ),
    Check(
        "Jacobian symmetry", "the same, H from finite differences of forces",
        1e-6, 5e-3, measure.jacobian_symmetry, (FORCES, COMPILED),
    ),
    Check("rotations", "turned at random, turned back", 1e-10, 2e-5, measure.rotations),
    Check("inversion", "every vector reversed", 1e-10, 2e-5, measure.inversion, (INVERSION,)),
    Check("translations", "atoms moved, also by lattice vectors", 1e-10, 2e-5,
          measure.translations),
    Check("atom order", "atoms renumbered at random", 1e-10, 2e-5, measure.atom_order),
    Check("edge order", "the neighbour list shuffled, gradients too", 1e-10, 1e-4,
          measure.edge_order),
    Check("batches", "all structures at once against one by one", 1e-10, 2e-5,
          measure.batches, (BATCHES,)),
    Check("repeatability", "the same bits run after run, gradients too", 0.0, 0.0,
          measure.repeats),
)  # fmt: skip


def names(only: Sequence[str] | None) -> list[str]:
    """The names of the checks to do, in the table's order.

    Raises:
        ValueError: a name that is not in the table, with the one that it is closest to.
    """
    known = [OPERATORS, *(row.name for row in CHECKS)]
    for name in only or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            listed = ", ".join(known)
            raise ValueError(f"only: there is no check {name!r}{hint}; the checks are: {listed}")
    return [name for name in known if only is None or name in only]

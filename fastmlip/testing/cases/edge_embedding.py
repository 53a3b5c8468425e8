"""Embeddings that users run, and some made to break kernels.

``OPERATORS["edge_embedding"].cases["nequip-L"]`` is one row. ``op`` and ``reference`` of this file
return all outputs side by side, ``[E, 1 + 1 + (l_max + 1)^2 + B + 1]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fastmlip.ops.edge_embedding import edge_embedding
from fastmlip.ops.edge_embedding import reference as plain_reference
from fastmlip.spherical_harmonics import tables
from fastmlip.testing.cases.operator import Operator


@dataclass(frozen=True)
class Case:
    """One row. ``types``: number of atom types with a cutoff for each pair, 0 for one cutoff."""

    l_max: int
    num_bessels: int = 8
    p: int = 6
    factor: float = 2 * math.pi / 25
    types: int = 0
    normalization: str = "component"
    r_max: float = 5.0

    @property
    def problem(self) -> Case:
        return self

    def rmax_recip(self, device: str = "cpu") -> torch.Tensor:
        """Rows differ from columns, so that a transposed lookup is seen."""
        pairs = torch.arange(max(self.types, 1) ** 2, device=device, dtype=torch.float64)
        return 1 / (self.r_max - 0.2 * pairs)


class Inputs(NamedTuple):
    """Operands of ``op`` and ``reference``."""

    edge_vec: torch.Tensor
    roots: torch.Tensor
    edge_type: torch.Tensor


def make_inputs(
    case: Case, dtype: torch.dtype = torch.float64, edges: int = 61, seed: int = 0,
    device: str = "cpu",
) -> Inputs:  # fmt: skip
    """Edges of random directions from 0.02 to 1.2 cutoffs; roots as trained ones, off integers."""
    random = torch.Generator().manual_seed(seed)
    vec = torch.randn((edges, 3), generator=random, dtype=torch.float64)
    lengths = torch.rand((edges, 1), generator=random, dtype=torch.float64) * 1.18 + 0.02
    vec = vec / vec.norm(dim=1, keepdim=True) * lengths * case.r_max
    roots = torch.arange(1, case.num_bessels + 1, dtype=torch.float64)
    roots += 0.1 * torch.randn(case.num_bessels, generator=random, dtype=torch.float64)
    types = torch.randint(0, max(case.types, 1), (2, edges), generator=random)
    return Inputs(vec.to(device, dtype), roots.to(device, dtype), types.to(device))


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator, its tables and cutoffs included."""
    vec, roots, edge_type = inputs
    device = str(vec.device)
    return {
        "edge_vec": vec,
        "roots": roots.double(),
        "rmax_recip": case.rmax_recip(device),
        "edge_type": edge_type if case.types else None,
        "l_max": case.l_max,
        "p": case.p,
        "factor": case.factor,
        "dtype": vec.dtype,
        "tables": tables(case.l_max, case.normalization).to(device),
    }


def _side_by_side(function, edge_vec, roots, edge_type, case: Case) -> torch.Tensor:
    out = function(**arguments(Inputs(edge_vec, roots, edge_type), case))
    return torch.cat([value.to(edge_vec.dtype) for value in out], 1)


def op(edge_vec, roots, edge_type, problem: Case) -> torch.Tensor:
    return _side_by_side(edge_embedding, edge_vec, roots, edge_type, problem)


def reference(edge_vec, roots, edge_type, problem: Case) -> torch.Tensor:
    return _side_by_side(plain_reference, edge_vec, roots, edge_type, problem)


CASES = {
    "nequip-S": Case(1),
    "nequip-M": Case(2),
    "nequip-L": Case(3),
    "nequip-XL": Case(4),
    "allegro-radial": Case(-1, factor=1.0),
    "harmonics": Case(3, num_bessels=0, normalization="integral"),
    "pairs-of-types": Case(2, types=3),
    "one-root": Case(0, num_bessels=1, p=2),
    "many-roots": Case(1, num_bessels=21, p=9),
    "odd": Case(5, num_bessels=3, p=5, factor=-1.3, types=2, normalization="norm"),
    "high-l": Case(8, num_bessels=2),
}

OPERATOR = Operator(
    op, reference, make_inputs, CASES, arguments, {"edges": 4200}, {"edges": 7},
    triton=("nequip-S",),
)  # fmt: skip

"""Tensor products of Allegro's layers and odd ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from fastmlip.ops.contraction import contraction, strided_problem
from fastmlip.ops.contraction import reference as plain_reference
from fastmlip.problem import TensorProductProblem
from fastmlip.testing.cases.operator import Operator


@dataclass(frozen=True)
class Case:
    """One row: the irreps, channels, and how ``x`` is given: ``plain``, ``factors`` with a weight
    for each irrep, or ``shared`` with one for all."""

    irreps_in1: str
    irreps_in2: str
    irreps_out: str
    channels: int
    x: str = "plain"

    @cached_property
    def problem(self) -> TensorProductProblem:
        return strided_problem(self.irreps_in1, self.irreps_in2, self.irreps_out)

    @property
    def rows(self) -> int:
        irreps = self.irreps_in1.count("+") + 1
        return {"plain": self.problem.dim_in1, "factors": irreps, "shared": 1}[self.x]


class Inputs(NamedTuple):
    """Operands in the order of the operator; ``edge_attr`` has no columns where x is plain."""

    x: torch.Tensor
    env: torch.Tensor
    weight: torch.Tensor
    edge_dst: torch.Tensor
    edge_attr: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``, indices as they are."""
        return Inputs(*(t.to(dtype) if t.is_floating_point() else t for t in self))


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float64,
    nodes: int = 5,
    edges: int = 56,
    seed: int = 0,
    sorted: bool = False,
    index_dtype: torch.dtype = torch.int64,
) -> Inputs:
    """Standard normal operands on a random graph; some nodes have no edges, as ghost atoms."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    problem = case.problem
    edge_dst = torch.randint(0, max(nodes * 3 // 4, 1), (edges,), generator=random)
    if sorted:
        edge_dst = edge_dst.sort().values
    return Inputs(
        normal(edges, case.rows, case.channels),
        normal(nodes, problem.dim_in2, case.channels),
        normal(problem.weight_numel, case.channels),
        edge_dst.to(index_dtype),
        normal(edges, 0 if case.x == "plain" else problem.dim_in1),
    )


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    given = {**inputs._asdict(), "problem": case.problem}
    return given | {"edge_attr": None if case.x == "plain" else inputs.edge_attr}


def op(
    x: torch.Tensor,
    env: torch.Tensor,
    weight: torch.Tensor,
    edge_dst: torch.Tensor,
    edge_attr: torch.Tensor,
    problem: TensorProductProblem,
) -> torch.Tensor:
    given = edge_attr if edge_attr.shape[1] else None
    return contraction(x, env, weight, edge_dst, problem, given)


def reference(
    x: torch.Tensor,
    env: torch.Tensor,
    weight: torch.Tensor,
    edge_dst: torch.Tensor,
    edge_attr: torch.Tensor,
    problem: TensorProductProblem,
) -> torch.Tensor:
    given = edge_attr if edge_attr.shape[1] else None
    return plain_reference(x, env, weight, edge_dst, problem, given)


SH1, SH2, SH3, SH4 = "0e+1o", "0e+1o+2e", "0e+1o+2e+3o", "0e+1o+2e+3o+4e"
BOTH2, BOTH3 = "0e+0o+1e+1o+2e+2o", "0e+0o+1e+1o+2e+2o+3e+3o"

CONTRACTIONS = {
    "l_max 2, first layer": Case(SH2, SH2, SH2, 64, "factors"),
    "l_max 2, last layer": Case(SH2, SH2, "0e", 16),
    "l_max 2, hidden layer": Case(SH2, SH2, SH2, 33),
    "l_max 2, 64 channels": Case(SH2, SH2, SH2, 64),
    "l_max 1": Case(SH1, SH1, SH1, 4),
    "l_max 3": Case(SH3, SH3, SH3, 16),
    "l_max 3, one weight for all": Case(SH3, SH3, SH3, 5, "shared"),
    "l_max 4": Case(SH4, SH4, SH4, 3, "factors"),
    "both parities": Case(BOTH2, SH2, BOTH2, 17),
    "both parities, l_max 3": Case("0e+1e+1o+2e+2o+3e+3o", SH3, SH3, 8),
    "one channel": Case(SH2, SH2, SH2, 1),
    "one path": Case("0e", "0e", "0e", 7, "factors"),
    "blocks without paths": Case("0e+0o+3o", "0e+1o", BOTH3, 9),
}

OPERATOR = Operator(
    op, reference, make_inputs, CONTRACTIONS, arguments, {"nodes": 60, "edges": 1500},
    {"nodes": 3, "edges": 7},
    slow=frozenset(("l_max 2, 64 channels", "l_max 4", "both parities, l_max 3")),
)  # fmt: skip

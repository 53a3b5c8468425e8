"""Random edge lists: sorted by receiver or not, with self-images, and nodes without any edge."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastmlip.ops.edge_vectors import edge_vectors, reference
from fastmlip.testing.cases.operator import Operator


class Case(NamedTuple):
    """One row: how edges are listed."""

    is_sorted: bool = True
    integer: torch.dtype = torch.int64

    @property
    def problem(self) -> Case:
        return self


class Inputs(NamedTuple):
    """Operands in the order of the operator."""

    positions: torch.Tensor
    edge_dst: torch.Tensor
    edge_src: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``."""
        return self._replace(positions=self.positions.to(dtype))


def make_inputs(
    case: Case, dtype: torch.dtype = torch.float64, edges: int = 150, seed: int = 0
) -> Inputs:
    """Random positions of a node for each ten edges, of which the last has none."""
    random = torch.Generator().manual_seed(seed)
    nodes = edges // 10 + 2
    ends = torch.randint(0, nodes - 1, (2, edges), generator=random)
    if case.is_sorted:
        ends[0] = ends[0].sort().values
    positions = torch.randn(nodes, 3, generator=random).to(dtype)
    return Inputs(positions, *ends.to(case.integer))


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    return inputs._asdict()


def _op(
    positions: torch.Tensor, edge_dst: torch.Tensor, edge_src: torch.Tensor, problem: Case
) -> torch.Tensor:
    return edge_vectors(positions, edge_dst, edge_src)


def _reference(
    positions: torch.Tensor, edge_dst: torch.Tensor, edge_src: torch.Tensor, problem: Case
) -> torch.Tensor:
    return reference(positions, edge_dst, edge_src)


EDGE_VECTORS = {
    "sorted": Case(),
    "in any order": Case(is_sorted=False),
    "int32": Case(integer=torch.int32),
}

OPERATOR = Operator(
    _op, _reference, make_inputs, EDGE_VECTORS, arguments, {"edges": 50_000}, {"edges": 30}
)

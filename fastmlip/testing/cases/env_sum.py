"""Environments of Allegro's models and odd ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastmlip.ops.env_sum import env_sum
from fastmlip.ops.env_sum import reference as plain_reference
from fastmlip.testing.cases.operator import Operator


class Problem(NamedTuple):
    """What is no operand drawn at random."""

    dims: tuple[int, ...]
    num_nodes: int


class Case(NamedTuple):
    """One row: columns of each block of ``edge_attr``, channels, whether blocks share a weight."""

    dims: tuple[int, ...]
    channels: int
    shared: bool = False
    num_nodes: int = 6

    @property
    def problem(self) -> Problem:
        return Problem(self.dims, self.num_nodes)


class Inputs(NamedTuple):
    """Operands in the order of the operator."""

    edge_weight: torch.Tensor
    edge_attr: torch.Tensor
    edge_dst: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``, indices as they are."""
        return Inputs(self.edge_weight.to(dtype), self.edge_attr.to(dtype), self.edge_dst)


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float64,
    edges: int = 56,
    seed: int = 0,
    sorted: bool = False,
    index_dtype: torch.dtype = torch.int64,
) -> Inputs:
    """Standard normal operands; the last node has no edges, as a ghost atom."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    edge_dst = torch.randint(0, case.num_nodes - 1, (edges,), generator=random)
    if sorted:
        edge_dst = edge_dst.sort().values
    rows = 1 if case.shared else len(case.dims)
    return Inputs(
        normal(edges, rows, case.channels),
        normal(edges, sum(case.dims)),
        edge_dst.to(index_dtype),
    )


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    return {
        **inputs._asdict(),
        "num_nodes": case.num_nodes,
        "dims": case.dims,
    }


def op(
    edge_weight: torch.Tensor, edge_attr: torch.Tensor, edge_dst: torch.Tensor, problem: Problem
) -> torch.Tensor:
    return env_sum(edge_weight, edge_attr, edge_dst, problem.num_nodes, problem.dims)


def reference(
    edge_weight: torch.Tensor, edge_attr: torch.Tensor, edge_dst: torch.Tensor, problem: Problem
) -> torch.Tensor:
    return plain_reference(edge_weight, edge_attr, edge_dst, problem.num_nodes, problem.dims)


ENV_SUMS = {
    "l_max 2": Case((1, 3, 5), 64),
    "odd channels": Case((1, 3), 7),
    "l_max 3": Case((1, 3, 5, 7), 16),
    "one channel": Case((1, 3, 5), 1),
    "one weight for all": Case((1, 3, 5), 33, shared=True),
    "scalars": Case((1,), 5),
    "high l": Case((1, 11, 13), 3, num_nodes=37),
}

OPERATOR = Operator(op, reference, make_inputs, ENV_SUMS, arguments, {"edges": 4000}, {"edges": 9})

"""Layers of real radial networks and odd ones, with pairs, larger groups, or every edge its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastmlip.ops.pair_linear import pair_linear, reference
from fastmlip.testing.cases.operator import Operator


class Case(NamedTuple):
    """One row: the size of the weight, and how many edges share a row of ``x``, some of them."""

    inputs: int
    outputs: int
    group: int = 2

    @property
    def problem(self) -> Case:
        return self


class Inputs(NamedTuple):
    """Operands in the order of the operator."""

    x: torch.Tensor
    weight: torch.Tensor
    edge_pair: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``."""
        return Inputs(self.x.to(dtype), self.weight.to(dtype), self.edge_pair)


def make_inputs(
    case: Case, dtype: torch.dtype = torch.float64, edges: int = 150, seed: int = 0
) -> Inputs:
    """Random rows and weights; three quarters of the edges in groups, in any order."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(edges, case.inputs, generator=random).to(dtype)
    weight = torch.randn(case.inputs, case.outputs, generator=random).to(dtype)
    edge_pair = torch.arange(edges)
    groups = torch.randperm(edges, generator=random)[: edges * 3 // 4 // case.group * case.group]
    groups = groups.view(-1, case.group)
    edge_pair[groups] = groups[:, :1]
    return Inputs(x, weight / max(1, case.inputs) ** 0.5, edge_pair)


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    return inputs._asdict()


def _op(
    x: torch.Tensor, weight: torch.Tensor, edge_pair: torch.Tensor, problem: Case
) -> torch.Tensor:
    return pair_linear(x, weight, edge_pair)


def _reference(
    x: torch.Tensor, weight: torch.Tensor, edge_pair: torch.Tensor, problem: Case
) -> torch.Tensor:
    return reference(x, weight, edge_pair)


PAIR_LINEAR = {
    "nequip-M, last layer": Case(128, 704),
    "first layer": Case(8, 128),
    "odd": Case(13, 101),
    "one column": Case(1, 1),
    "groups of five": Case(7, 30, group=5),
    "no pairs": Case(20, 50, group=1),
    "no columns": Case(0, 3),
}

OPERATOR = Operator(
    _op, _reference, make_inputs, PAIR_LINEAR, arguments, {"edges": 5000}, {"edges": 20}
)

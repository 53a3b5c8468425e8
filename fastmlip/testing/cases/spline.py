"""Tables of functions of a distance, of one kind and of several."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastmlip.ops import _spline
from fastmlip.ops.spline import reference as plain_reference
from fastmlip.ops.spline import spline
from fastmlip.testing.cases.operator import Operator


class Case(NamedTuple):
    """One row: columns and rows of the coefficients."""

    columns: int
    rows: int

    @property
    def problem(self) -> Case:
        return self

    def table(self, dtype: torch.dtype) -> torch.Tensor:
        """Of coefficients of the size of one."""
        numbers = torch.arange(self.rows * self.columns, dtype=torch.float64).mul(1.7).sin()
        return _spline.table(numbers.view(self.rows, self.columns).to(dtype))


class Inputs(NamedTuple):
    """Operands in the order of the operator."""

    place: torch.Tensor
    first_row: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``, indices as they are."""
        return Inputs(self.place.to(dtype), self.first_row)


def make_inputs(
    case: Case, dtype: torch.dtype = torch.float64, edges: int = 150, seed: int = 0
) -> Inputs:
    """Places in an interval, and rows drawn at random."""
    random = torch.Generator().manual_seed(seed)
    place = torch.rand(edges, 1, generator=random, dtype=torch.float64).to(dtype)
    last = case.rows - _spline.DEGREE
    return Inputs(place, torch.randint(0, last, (edges,), generator=random))


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    table = case.table(inputs.place.dtype)
    return {**inputs._asdict(), "table": table, "columns": case.columns}


def op(place: torch.Tensor, first_row: torch.Tensor, problem: Case) -> torch.Tensor:
    return spline(place, first_row, problem.table(place.dtype), problem.columns)


def reference(place: torch.Tensor, first_row: torch.Tensor, problem: Case) -> torch.Tensor:
    return plain_reference(place, first_row, problem.table(place.dtype), problem.columns)


SPLINES = {
    "16 pairs of types": Case(256, 16 * 69),
    "odd": Case(67, 40),
    "one column, one interval": Case(1, 6),
    "a block": Case(64, 20),
}

OPERATOR = Operator(op, reference, make_inputs, SPLINES, arguments, {"edges": 4000}, {"edges": 9})

"""Numbers of types, and which of scales and shifts are there, for one type or for each.

``OPERATORS["scale_shift"].cases["per type"]`` is one row; ``op(*inputs, case.problem)`` leaves out
what the case does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastmlip.ops import scale_shift
from fastmlip.ops.scale_shift import reference
from fastmlip.testing.cases.operator import Operator


@dataclass(frozen=True)
class Case:
    """One row: how many values of each kind there are; 0 is None, 1 one value for all types."""

    num_scales: int
    num_shifts: int
    num_types: int

    @property
    def problem(self) -> tuple[bool, bool]:
        """Whether there are scales, and shifts."""
        return self.num_scales > 0, self.num_shifts > 0


class Inputs(NamedTuple):
    """Operands in the order of the operator."""

    x: torch.Tensor
    types: torch.Tensor
    scales: torch.Tensor
    shifts: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """With energies of ``dtype``; scales and shifts stay float64."""
        return self._replace(x=self.x.to(dtype))


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float64,
    atoms: int = 37,
    ghosts: int = 0,
    index_dtype: torch.dtype = torch.int64,
    column: bool = True,
    seed: int = 0,
) -> Inputs:
    """Energies that float32 holds exactly, random types, and values of the case."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(atoms, 1, generator=random).to(dtype)
    types = torch.randint(case.num_types, (atoms + ghosts,), generator=random).to(index_dtype)
    scales, shifts = (
        torch.randn(max(count, 1), 1, generator=random, dtype=torch.float64)
        for count in (case.num_scales, case.num_shifts)
    )
    return Inputs(x if column else x.flatten(), types, scales, shifts)


def arguments(inputs: Inputs, case: Case) -> dict[str, torch.Tensor | None]:
    """Keyword arguments of the operator, without what the case does not have."""
    has = {"scales": case.num_scales > 0, "shifts": case.num_shifts > 0}
    return {name: t if has.get(name, True) else None for name, t in inputs._asdict().items()}


def _without(function):
    def run(x, types, scales, shifts, problem):
        return function(x, types, scales if problem[0] else None, shifts if problem[1] else None)

    return run


SCALE_SHIFTS = {
    "per type": Case(5, 5, 5),
    "one value": Case(1, 1, 5),
    "scales of types, one shift": Case(5, 1, 5),
    "one scale, shifts of types": Case(1, 5, 5),
    "scales only": Case(5, 0, 5),
    "shifts only": Case(0, 5, 5),
    "one scale only": Case(1, 0, 5),
    "one shift only": Case(0, 1, 5),
    "one type": Case(1, 1, 1),
    "two types": Case(2, 2, 2),
    "120 types": Case(120, 120, 120),
}

OPERATOR = Operator(
    _without(scale_shift), _without(reference), make_inputs, SCALE_SHIFTS, arguments,
    {"atoms": 140_000}, {"atoms": 9}, triton=("per type", "one value"),
)  # fmt: skip

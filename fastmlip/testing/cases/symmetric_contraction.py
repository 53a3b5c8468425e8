"""Polynomials of MACE's models and odd ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from fastmlip.ops.symmetric_contraction import reference as plain_reference
from fastmlip.ops.symmetric_contraction import symmetric_contraction
from fastmlip.polynomial import Polynomial
from fastmlip.testing import couplings
from fastmlip.testing.cases.operator import Operator


class Case(NamedTuple):
    """One row; the polynomial is made when it is first asked for."""

    make: Callable[[], Polynomial]
    channels: int
    types: int = 3

    @property
    def problem(self) -> Polynomial:
        return self.make()


class Inputs(NamedTuple):
    """Operands in the order of the operator."""

    x: torch.Tensor
    coefficients: torch.Tensor
    types: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``."""
        return Inputs(self.x.to(dtype), self.coefficients.to(dtype), self.types)


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float64,
    nodes: int = 13,
    ghosts: int = 0,
    seed: int = 0,
) -> Inputs:
    """Standard normal operands; the last type, where there are several, has no node."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    problem = case.problem
    return Inputs(
        normal(nodes, problem.inputs, case.channels),
        normal(case.types, len(problem.terms), case.channels),
        torch.randint(max(1, case.types - 1), (nodes + ghosts,), generator=random),
    )


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    return {**inputs._asdict(), "problem": case.problem}


def op(
    x: torch.Tensor, coefficients: torch.Tensor, types: torch.Tensor, problem: Polynomial
) -> torch.Tensor:
    return symmetric_contraction(x, coefficients, types, problem)


def reference(
    x: torch.Tensor, coefficients: torch.Tensor, types: torch.Tensor, problem: Polynomial
) -> torch.Tensor:
    return plain_reference(x, coefficients, types, problem)


def _mace(l_max: int, l_out: int, degree: int) -> Callable[[], Polynomial]:
    return partial(couplings.polynomial, l_max, l_out, degree)


def _plain(inputs: int, outputs: int, *terms: Any) -> Callable[[], Polynomial]:
    problem = Polynomial(inputs, outputs, terms)
    return lambda: problem


SYMMETRIC_CONTRACTIONS = {
    "l_max 1": Case(_mace(1, 1, 3), 16),
    "unused inputs and outputs": Case(
        _plain(
            5, 4, (0, (3,)), (0, (3, 3, 3)), (1, (0, 3)), (1, (1, 1, 3)), (1, (1, 3, 3)), (3, (0,)),
            (3, (0, 0)), (3, (0, 0, 0)), (3, (0, 0, 3)), (3, (1, 3, 3)),
        ),
        5,
        4,
    ),
    "one channel": Case(_mace(2, 0, 2), 1, 1),
    "squares": Case(_mace(2, 2, 2), 33),
    "linear": Case(_plain(3, 2, (0, (0,)), (0, (2,)), (1, (1,))), 9),
    "a type for each node": Case(_mace(1, 0, 3), 7, 40),
    "no terms": Case(_plain(2, 3), 4),
    "mace small": Case(_mace(3, 0, 3), 128),
    "mace medium": Case(_mace(3, 1, 3), 17, 2),
    "mace large": Case(_mace(3, 2, 3), 64),
}  # fmt: skip

OPERATOR = Operator(
    op, reference, make_inputs, SYMMETRIC_CONTRACTIONS, arguments, {"nodes": 200}, {"nodes": 3},
    triton=("one channel", "unused inputs and outputs"),
    slow=frozenset(("mace medium", "mace large")),
)  # fmt: skip

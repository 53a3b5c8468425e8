"""Linear maps of real models and odd ones, with one set of weights or one for each type."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastmlip.ops.irreps_linear import LinearProblem, irreps_linear
from fastmlip.ops.irreps_linear import reference as plain_reference
from fastmlip.testing.cases.operator import Operator


class Case(NamedTuple):
    """One row; ``types`` 0 is one set of weights."""

    linear: LinearProblem
    types: int

    @property
    def problem(self) -> Case:
        return self


class Inputs(NamedTuple):
    """Operands in the order of the operator."""

    x: torch.Tensor
    weight: torch.Tensor
    types: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """Floating operands in ``dtype``."""
        return Inputs(self.x.to(dtype), self.weight.to(dtype), self.types)


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float64,
    nodes: int = 37,
    ghosts: int = 0,
    seed: int = 0,
) -> Inputs:
    """Random rows, weights and types."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, case.linear.dim_in, generator=random).to(dtype)
    shape = max(1, case.types), case.linear.weight_numel
    weight = torch.randn(shape, generator=random).to(dtype)
    types = torch.randint(shape[0], (nodes + ghosts,), generator=random)
    return Inputs(x, weight, types)


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    types = inputs.types if case.types else None
    return {"x": inputs.x, "weight": inputs.weight, "problem": case.linear, "types": types}


def op(x: torch.Tensor, weight: torch.Tensor, types: torch.Tensor, problem: Case) -> torch.Tensor:
    return irreps_linear(**arguments(Inputs(x, weight, types), problem))


def reference(
    x: torch.Tensor, weight: torch.Tensor, types: torch.Tensor, problem: Case
) -> torch.Tensor:
    return plain_reference(**arguments(Inputs(x, weight, types), problem))


def _case(irreps_in: str, irreps_out: str, *instructions: tuple[int, int], types: int = 0) -> Case:
    return Case(LinearProblem(irreps_in, irreps_out, instructions), types)


M_IN, M_OUT = "128x0e+64x1o+32x2e", "224x0e+64x1o+32x2e"
IRREPS_LINEAR = {
    "nequip-M, self-connection": _case(M_IN, M_OUT, (0, 0), (1, 1), (2, 2), types=3),
    "nequip-M, linear_2": _case("224x0e+288x1o+256x2e", M_OUT, (0, 0), (1, 1), (2, 2)),
    "odd multiplicities": _case("5x0e+1x1o+7x3e", "3x3e+9x0e+2x1o", (0, 1), (1, 2), (2, 0)),
    "several paths to a block": _case("5x1e+3x1e+2x0o", "17x1e+2x1e+4x0o", (0, 0), (1, 0), (1, 1)),
    "types and high l": _case("3x6e+2x5o", "4x5o+2x6e", (1, 0), (0, 1), types=5),
    "a type for each node": _case("4x0e", "4x0e", (0, 0), types=60),
    "no path": _case("2x0e", "3x1o", types=2),
    "empty blocks": _case("0x0e+3x1o", "2x0e+3x1o", (0, 0), (1, 1)),
}

OPERATOR = Operator(
    op, reference, make_inputs, IRREPS_LINEAR, arguments, {"nodes": 700}, {"nodes": 4}
)

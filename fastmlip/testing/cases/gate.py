"""Gates of real models and odd ones."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch

from fastmlip.nn import Gate
from fastmlip.ops.gate import Segment, dims, gate
from fastmlip.ops.gate import reference as plain_reference
from fastmlip.testing.cases.operator import Operator


class Case(NamedTuple):
    """One row: the arguments of e3nn's ``Gate``."""

    irreps_scalars: str
    act_scalars: tuple[Any, ...]
    irreps_gates: str
    act_gates: tuple[Any, ...]
    irreps_gated: str

    @property
    def problem(self) -> tuple[Segment, ...]:
        """Made when it is first asked for: e3nn takes a million samples of each activation."""
        return _segments(self)


@cache
def _segments(case: Case) -> tuple[Segment, ...]:
    return Gate(*case).segments


class Inputs(NamedTuple):
    """Operands in the order of the operator."""

    x: torch.Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """In ``dtype``."""
        return Inputs(self.x.to(dtype))


def make_inputs(
    case: Case, dtype: torch.dtype = torch.float64, nodes: int = 19, seed: int = 0
) -> Inputs:
    """Rows of normal variables, three times as wide as e3nn's normalisation assumes."""
    columns, _ = dims(case.problem)
    random = torch.Generator().manual_seed(seed)
    return Inputs(3 * torch.randn(nodes, columns, generator=random).to(dtype))


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    return {"x": inputs.x, "segments": case.problem}


def op(x: torch.Tensor, problem: tuple[Segment, ...]) -> torch.Tensor:
    return gate(x, problem)


def reference(x: torch.Tensor, problem: tuple[Segment, ...]) -> torch.Tensor:
    return plain_reference(x, problem)


SILU, TANH = torch.nn.functional.silu, torch.tanh


GATES = {
    "nequip-M": Case("128x0e", (SILU,), "64x0e+32x0e", (SILU, SILU), "64x1o+32x2e"),
    "scalars only": Case("128x0e", (SILU,), "", (), ""),
    "both parities": Case("5x0e+3x0o", (SILU, TANH), "4x0e+7x0o", (SILU, TANH), "6x1o+2x2e+3x3o"),
    "activations within a block": Case(
        "3x0e+2x0e", (SILU, TANH), "2x0e+3x0e+4x0o", (TANH, SILU, TANH), "4x1o+5x2e"
    ),
    "scalars that stay": Case(
        "2x0o+3x0e", (TANH, None), "3x0o+2x0e", (TANH, SILU), "1x2e+2x1o+2x1e"
    ),
    "no scalars": Case("", (), "17x0o", (TANH,), "17x4e"),
    "identity": Case("2x0e", (None,), "3x0e", (None,), "3x1e"),
}

OPERATOR = Operator(op, reference, make_inputs, GATES, arguments, {"nodes": 700}, {"nodes": 3})

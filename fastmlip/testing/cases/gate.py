"""Gates of real models and odd ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from e3nn import nn

from fastmlip.nn.gate import segments_of
from fastmlip.ops.gate import Segment, gate
from fastmlip.ops.gate import reference as plain_reference
from fastmlip.testing.cases.operator import Operator


class Case(NamedTuple):
    """One row."""

    segments: tuple[Segment, ...]

    @property
    def problem(self) -> tuple[Segment, ...]:
        return self.segments


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
    columns = sum(s.mul * (1 + s.dim) for s in case.segments)
    random = torch.Generator().manual_seed(seed)
    return Inputs(3 * torch.randn(nodes, columns, generator=random).to(dtype))


def arguments(inputs: Inputs, case: Case) -> dict[str, Any]:
    """Keyword arguments of the operator."""
    return {"x": inputs.x, "segments": case.segments}


def op(x: torch.Tensor, problem: tuple[Segment, ...]) -> torch.Tensor:
    return gate(x, problem)


def reference(x: torch.Tensor, problem: tuple[Segment, ...]) -> torch.Tensor:
    return plain_reference(x, problem)


SILU, TANH = torch.nn.functional.silu, torch.tanh


def _case(*arguments: Any) -> Case:
    return Case(segments_of(nn.Gate(*arguments)))


GATES = {
    "nequip-M": _case("128x0e", [SILU], "64x0e+32x0e", [SILU, SILU], "64x1o+32x2e"),
    "scalars only": _case("128x0e", [SILU], "", [], ""),
    "both parities": _case("5x0e+3x0o", [SILU, TANH], "4x0e+7x0o", [SILU, TANH], "6x1o+2x2e+3x3o"),
    "activations within a block": _case(
        "3x0e+2x0e", [SILU, TANH], "2x0e+3x0e+4x0o", [TANH, SILU, TANH], "4x1o+5x2e"
    ),
    "no scalars": _case("", [], "17x0o", [TANH], "17x4e"),
    "identity": _case("2x0e", [None], "3x0e", [None], "3x1e"),
}

OPERATOR = Operator(op, reference, make_inputs, GATES, arguments, {"nodes": 700})

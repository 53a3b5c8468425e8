"""e3nn's ``Linear``, and its ``FullyConnectedTensorProduct`` folded by type, on
:mod:`fastmlip.ops.irreps_linear`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from e3nn.o3 import Irreps

from fastmlip import nn


class FoldedLinear(torch.nn.Module):
    """``factor`` times ``linear``, which keeps its weights: it is given at every call.

    Rows may lie in other layouts, and in the blocks of other irreps that simplify to the same.
    """

    factors: torch.Tensor  # of the weights: e3nn's path weights, and the caller's
    folded: torch.Tensor | None  # weights with factors, where they are kept: in tabulated models

    def __init__(
        self,
        linear: Any,
        factor: float = 1.0,
        irreps_in: Any = None,
        layout_in: str = "mul_ir",
        layout_out: str = "mul_ir",
    ) -> None:
        super().__init__()
        irreps_in = Irreps(str(linear.irreps_in if irreps_in is None else irreps_in))
        parts = _parts(irreps_in, Irreps(str(linear.irreps_in)))
        paths = [path for path in linear.instructions if 0 not in path.path_shape]
        # rows of a path's weights are those of its parts, one behind the other
        instructions = [(i, path.i_out) for path in paths for i in parts[path.i_in]]
        self.map = nn.IrrepsLinear(
            irreps_in, linear.irreps_out, instructions, layout_in, layout_out
        )
        factors = [
            linear.weight.new_full((math.prod(path.path_shape),), factor * path.path_weight)
            for path in paths
        ]
        self.register_buffer("factors", torch.cat(factors).unsqueeze(0), persistent=False)
        self.register_buffer("folded", None, persistent=False)

    def fold(self, linear: Any) -> torch.Tensor:
        """Weights ``[1, weight_numel]`` of the map."""
        return linear.weight * self.factors

    def forward(self, x: torch.Tensor, linear: Any) -> torch.Tensor:
        """``factor * linear(x)``."""
        return self.map(x, self.fold(linear) if self.folded is None else self.folded)


def _parts(blocks: Irreps, merged: Irreps) -> list[list[int]]:
    """The numbers of the ``blocks`` that each block of ``merged`` is made of."""
    parts: list[list[int]] = []
    numbers = iter([i for i, block in enumerate(blocks) if block.mul])
    for mul, ir in merged:
        parts.append([])
        while (done := sum(blocks[i].mul for i in parts[-1])) < mul:
            i = next(numbers, None)
            if i is None or blocks[i].ir != ir or done + blocks[i].mul > mul:
                raise ValueError(f"irreps_in: expected blocks that make {merged}, got {blocks}")
            parts[-1].append(i)
    return parts


def unsupported(linear: Any) -> str:
    """Why a ``Linear`` cannot be taken; empty where it can."""
    if getattr(linear, "bias_numel", 0):
        return "a linear layer has a bias"
    if not hasattr(linear, "weight") or linear.weight.dim() != 1:
        return "an unknown version of e3nn's Linear"
    return ""


class TypedLinear(torch.nn.Module):
    """A self-connection ``sc`` with a second operand v that depends on the type t alone.

    The weight ``W[u, v, w]`` of a path of e3nn's ``FullyConnectedTensorProduct`` becomes
    ``M[t, u, w] = sum_v v[t] W[u, v, w]``; the scalar second operand makes the Wigner 3j symbol a
    unit matrix over sqrt(2 l + 1).
    """

    folded: torch.Tensor | None  # M, where it is kept: in tabulated models

    def __init__(self, sc: Any, layout_in: str = "mul_ir", layout_out: str = "mul_ir") -> None:
        super().__init__()
        pairs = [(path.i_in1, path.i_out) for path in sc.instructions]
        self.map = nn.IrrepsLinear(sc.irreps_in1, sc.irreps_out, pairs, layout_in, layout_out)
        self.num_attrs = int(sc.irreps_in2.dim)  # Dynamo cannot guard irreps
        self.register_buffer("folded", None, persistent=False)

    def fold(self, sc: Any, v: torch.Tensor) -> torch.Tensor:
        """M ``[num_types, weight_numel]``."""
        slices, blocks = sc.irreps_in2.slices(), []
        for path, weight, factor in _typed_paths(sc):
            scalars = v[:, slices[path.i_in2]] * factor
            # not matmul, which copies weights that require a gradient
            blocks.append(torch.bmm(scalars.expand(weight.shape[0], -1, -1), weight))
        return _by_type(blocks)

    def rows(self, sc: Any, types: torch.Tensor) -> torch.Tensor:
        """M ``[len(types), weight_numel]`` where v is the unit vector of a type: weights read as
        they lie, of these types alone. ``sc`` has one block of second operands."""
        return _by_type([w.index_select(1, types) * factor for _, w, factor in _typed_paths(sc)])

    def forward(
        self, x: torch.Tensor, sc: Any, v: torch.Tensor, types: torch.Tensor
    ) -> torch.Tensor:
        """``sc(x, v[types])``; ``v [num_types, irreps_in2.dim]``."""
        return self.map(x, self.fold(sc, v) if self.folded is None else self.folded, types)


def _typed_paths(sc: Any) -> Iterator[tuple[Any, torch.Tensor, float]]:
    """Instruction, weight ``[u, v, w]`` and factor of each path."""
    for _, path, weight in sc.weight_views(yield_instruction=True):
        yield path, weight, path.path_weight / math.sqrt(sc.irreps_in1[path.i_in1].ir.dim)


def _by_type(blocks: list[torch.Tensor]) -> torch.Tensor:
    """Blocks ``[u, t, w]`` of paths as rows of types."""
    return torch.cat([m.transpose(0, 1).flatten(1) for m in blocks], 1)

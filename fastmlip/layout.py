"""Layouts of a row of irreps.

``mul_ir``, e3nn's, holds each block ``[mul, 2 l + 1]``; ``ir_mul`` holds it ``[2 l + 1, mul]``, so
that neighbouring channels of a component lie together, as kernels read them.
"""

from __future__ import annotations

import torch
from e3nn.o3 import Irreps

LAYOUTS = ("mul_ir", "ir_mul")


def check(name: str, layout: str) -> None:
    """Raise ValueError, naming the argument, for what is not a layout."""
    if layout not in LAYOUTS:
        raise ValueError(f"{name}: expected one of {LAYOUTS}, got {layout!r}")


def to_ir_mul(x: torch.Tensor, irreps: str) -> torch.Tensor:
    """``x [N, irreps.dim]`` in ``mul_ir`` layout, in the other."""
    return _swapped(x, [(block.mul, block.ir.dim) for block in Irreps(irreps)])


def to_mul_ir(x: torch.Tensor, irreps: str) -> torch.Tensor:
    """``x [N, irreps.dim]`` in ``ir_mul`` layout, in the other."""
    return _swapped(x, [(block.ir.dim, block.mul) for block in Irreps(irreps)])


def _swapped(x: torch.Tensor, shapes: list[tuple[int, int]]) -> torch.Tensor:
    if all(1 in shape for shape in shapes):
        return x.contiguous()
    parts = x.split([rows * columns for rows, columns in shapes], dim=1)
    blocks = [
        part.unflatten(1, shape).transpose(1, 2).flatten(1)
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return torch.cat(blocks, dim=1)

"""GPU kernels of spline; fastmlip/ops/_spline.py states the formulas, and these take the second.

A program owns an edge and a block of columns (fwd), or an edge, whose blocks it takes one after the
other (bwd). No atomics: the same bits in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastmlip.ops import _spline

from ._launches import Table
from ._run import kernel, run

Tensor = torch.Tensor
LANES = 32  # with two columns each: a block of the table
STEPS = Table(tuple(powers) for powers in _spline.STEPS)
SLOPES = Table(tuple(power * f for power, f in enumerate(powers))[1:] for powers in STEPS)
BENDS = Table(tuple(power * f for power, f in enumerate(powers))[1:] for powers in SLOPES)


@triton.constexpr_function
def _length(powers):
    return len(powers[0])


@triton.constexpr_function
def _factor(powers, j, power):
    return powers[j][power]


@triton.jit
def polynomial(place, POWERS: tl.constexpr, j: tl.constexpr):
    """The j-th of the five that the differences of rows are multiplied by."""
    value = tl.zeros_like(place) + _factor(POWERS, j, _length(POWERS) - 1)
    for k in tl.static_range(1, _length(POWERS)):
        value = value * place + _factor(POWERS, j, _length(POWERS) - 1 - k)
    return value


@triton.jit
def _rows(table, place, row, POWERS: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """The first of six rows, or none of it, and their differences times the polynomials."""
    columns = tl.arange(0, BLOCK)
    before = tl.load(table + row * BLOCK + columns)
    total = before * FIRST
    for j in tl.static_range(5):
        after = tl.load(table + (row + j + 1) * BLOCK + columns)
        total += polynomial(place, POWERS, j) * (after - before)
        before = after
    return total


@kernel("first_row", "rows")
def _spline_fwd_kernel(
    out,  # [E, COLUMNS]
    place,  # [E]
    first_row,  # [E]
    table,  # [blocks, rows, BLOCK]
    rows,
    POWERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    e, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = block * rows + tl.load(first_row + e)
    value = _rows(table, tl.load(place + e), row, POWERS, 1.0, BLOCK)
    column = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + e * COLUMNS + column, value, mask=column < COLUMNS)


@kernel("first_row", "rows")
def _spline_bwd_kernel(
    dplace,  # [E]
    grad,  # [E, COLUMNS]
    place,  # [E]
    first_row,  # [E]
    table,  # [blocks, rows, BLOCK]
    rows,
    POWERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    e = tl.program_id(0).to(tl.int64)
    row, at = tl.load(first_row + e), tl.load(place + e)
    total = tl.zeros((BLOCK,), dplace.dtype.element_ty)
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(grad + e * COLUMNS + column, mask=column < COLUMNS, other=0.0)
        total += g * _rows(table, at, row, POWERS, 0.0, BLOCK)
        row += rows  # those of the next block
    tl.store(dplace + e, tl.sum(total))


def forward(place: Tensor, first_row: Tensor, table: Tensor, columns: int) -> Tensor:
    """``[E, columns]``."""
    place, first_row, table = place.contiguous(), first_row.contiguous(), table.contiguous()
    blocks, rows, block = table.shape
    out = place.new_empty((place.shape[0], columns))
    run(
        _spline_fwd_kernel, (place.shape[0], blocks),
        out, place, first_row, table, rows,
        lanes=LANES, POWERS=STEPS, COLUMNS=columns, BLOCK=block,
    )  # fmt: skip
    return out


def backward(grad: Tensor, place: Tensor, first_row: Tensor, table: Tensor, columns: int) -> Tensor:
    """The gradient of place, ``[E, 1]``."""
    operands = (t.contiguous() for t in (grad, place, first_row, table))
    grad, place, first_row, table = operands
    blocks, rows, block = table.shape
    dplace = torch.empty_like(place)
    run(
        _spline_bwd_kernel, (place.shape[0],),
        dplace, grad, place, first_row, table, rows,
        lanes=LANES, POWERS=SLOPES, COLUMNS=columns, BLOCK=block, BLOCKS=blocks,
    )  # fmt: skip
    return dplace

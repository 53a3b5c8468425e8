"""GPU kernel of irreps_linear; fastmlip/ops/irreps_linear.py states the formula.

A program owns a few rows and a block of channels of one block of irreps of the result, and walks
the channels of all paths that lead there, a tile of weights at a time: a tile that the rows share
(one set of weights), or one for each row (weights by type). Rows are read and written in their
layouts, so nothing is transposed before or after. The sum over a tile's rows comes last, in a fixed
order.
"""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from fastmlip.ops.irreps_linear import LinearProblem

from ._channels import channel_step, component_step, inside
from ._launches import LANES, Table
from ._run import kernel, run

Tensor = torch.Tensor
BLOCK_IN = 16  # channels of a tile of weights: 4 of its elements a lane
MAX_SUMS = 12  # tiles of sums of a program, with as many words of a lane for each


@triton.constexpr_function
def _length(table):
    return len(table)


@triton.constexpr_function
def _block(table, b, field):
    fields = {"out": 0, "mul": 1, "dim": 2, "rows": 3, "programs": 4, "first": 5}
    return table[b][fields[field]]


@triton.constexpr_function
def _paths(table, b):
    return len(table[b][6])


@triton.constexpr_function
def _path(table, b, p, field):
    return table[b][6][p][{"in": 0, "mul": 1, "weight": 2}[field]]


@triton.jit
def _zeros(n: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, dtype: tl.constexpr):
    values = ()
    for _ in tl.static_range(n):
        values = values + (tl.zeros((BLOCK_IN, BLOCK_OUT), dtype),)
    return values


@triton.jit
def _add_path(
    sums, x, weight, types, num_rows, first, w, w_mask,
    TABLE: tl.constexpr, b: tl.constexpr, p: tl.constexpr, DIM_IN: tl.constexpr,
    WEIGHTS: tl.constexpr, TRANSPOSED: tl.constexpr, IR_MUL_IN: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """The sums of a program's rows, ``rows * dim`` tiles, with those of a path."""
    dim: tl.constexpr = _block(TABLE, b, "dim")
    mul: tl.constexpr = _block(TABLE, b, "mul")
    rows: tl.constexpr = _block(TABLE, b, "rows")
    mul_in: tl.constexpr = _path(TABLE, b, p, "mul")
    step: tl.constexpr = channel_step(IR_MUL_IN, dim)
    stride: tl.constexpr = component_step(IR_MUL_IN, mul_in)
    for from_u in range(0, mul_in, BLOCK_IN):
        u = from_u + tl.arange(0, BLOCK_IN)
        in_mask = inside(u, mul_in, BLOCK_IN)[:, None]
        mask = in_mask & w_mask[None, :]
        if TRANSPOSED:
            at_w = _path(TABLE, b, p, "weight") + w[None, :] * mul_in + u[:, None]
        else:
            at_w = _path(TABLE, b, p, "weight") + u[:, None] * mul + w[None, :]
        at_x = _path(TABLE, b, p, "in") + (u * step)[:, None]
        if types is None:
            tile = tl.load(weight + at_w, mask=mask, other=0.0)
        new_sums = ()
        for r in tl.static_range(rows):
            is_row = first + r < num_rows
            if types is not None:
                kind = tl.load(types + first + r, mask=is_row, other=0).to(tl.int64)
                tile = tl.load(weight + kind * WEIGHTS + at_w, mask=mask, other=0.0)
            row = x + (first + r) * DIM_IN + at_x
            for m in tl.static_range(dim):
                value = tl.load(row + m * stride, mask=in_mask & is_row, other=0.0)
                new_sums = new_sums + (sums[r * dim + m] + value * tile,)
        sums = new_sums
    return sums


@kernel("types", "num_rows")
def _irreps_linear_kernel(
    out,  # [N, DIM_OUT]
    x,  # [N, DIM_IN]
    weight,  # [types, WEIGHTS]
    types,  # [N] or more; None where there is one set of weights
    num_rows,
    TABLE: tl.constexpr,
    DIM_IN: tl.constexpr,
    DIM_OUT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    IR_MUL_IN: tl.constexpr,
    IR_MUL_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * ROWS
    for b in tl.static_range(_length(TABLE)):
        program = tl.program_id(1).to(tl.int64) - _block(TABLE, b, "first")
        if (program >= 0) & (program < _block(TABLE, b, "programs")):
            dim: tl.constexpr = _block(TABLE, b, "dim")
            mul: tl.constexpr = _block(TABLE, b, "mul")
            rows: tl.constexpr = _block(TABLE, b, "rows")
            groups: tl.constexpr = ROWS // rows
            blocks: tl.constexpr = _block(TABLE, b, "programs") // groups
            first = start + (program // blocks) * rows
            w = ((program % blocks) * BLOCK_OUT).to(tl.int32) + tl.arange(0, BLOCK_OUT)
            w_mask = inside(w, mul, BLOCK_OUT)
            sums = _zeros(rows * dim, BLOCK_IN, BLOCK_OUT, out.dtype.element_ty)
            for p in tl.static_range(_paths(TABLE, b)):
                sums = _add_path(
                    sums, x, weight, types, num_rows, first, w, w_mask,
                    TABLE, b, p, DIM_IN, WEIGHTS, TRANSPOSED, IR_MUL_IN, BLOCK_IN,
                )  # fmt: skip
            at = _block(TABLE, b, "out") + w * channel_step(IR_MUL_OUT, dim)
            for r in tl.static_range(rows):
                row = out + (first + r) * DIM_OUT + at
                for m in tl.static_range(dim):
                    tl.store(
                        row + m * component_step(IR_MUL_OUT, mul), tl.sum(sums[r * dim + m], 0),
                        mask=w_mask & (first + r < num_rows),
                    )  # fmt: skip


@cache
def _table(problem: LinearProblem, transposed: bool, itemsize: int) -> tuple[Table, int, int]:
    """Blocks of the result, ``((out, mul, dim, rows, programs, first, paths), ...)`` with paths
    ``((in, mul, weight), ...)``; rows that a group of programs owns; and the programs of a group.

    A block of fewer components has more rows a program, and fewer programs."""
    blocks: dict[tuple[int, int, int], list] = {}
    for start, mul_in, end, mul_out, dim, weight in problem.paths:
        ends = (
            ((end, mul_out), (start, mul_in)) if transposed else ((start, mul_in), (end, mul_out))
        )
        (source, mul), (out, of_block) = ends
        if of_block:
            paths = blocks.setdefault((out, of_block, dim), [])
            if mul:
                paths.append((source, mul, weight))
    sizes = {dim: _rows(dim, itemsize) for _, _, dim in blocks}
    together, first, table = max(sizes.values(), default=1), 0, []
    for (out, mul, dim), paths in blocks.items():
        programs = together // sizes[dim] * -(-mul // LANES)
        table.append((out, mul, dim, sizes[dim], programs, first, tuple(paths)))
        first += programs
    return Table(table), together, first


def _rows(dim: int, itemsize: int) -> int:
    """Of a program: a power of two, of as many sums as fit the registers."""
    rows = 4
    while rows > 1 and rows * dim * itemsize > 4 * MAX_SUMS:
        rows //= 2
    return rows


def apply(
    x: Tensor, weight: Tensor, types: Tensor | None, problem: LinearProblem, transposed: bool
) -> Tensor:
    """The map, or with ``transposed`` that from ``irreps_out`` to ``irreps_in``."""
    x, weight = x.contiguous(), weight.contiguous()
    types = None if types is None else types.contiguous()
    layouts = [problem.layout_in == "ir_mul", problem.layout_out == "ir_mul"]
    dims = [problem.dim_in, problem.dim_out]
    if transposed:
        layouts.reverse()
        dims.reverse()
    table, rows, programs = _table(problem, transposed, x.itemsize)
    covered = sum(mul * dim for _, mul, dim, *_ in table) == dims[1]
    out = (x.new_empty if covered else x.new_zeros)((x.shape[0], dims[1]))
    if not table:
        return out
    run(
        _irreps_linear_kernel, (-(-x.shape[0] // rows), programs),
        out, x, weight, types, x.shape[0],
        TABLE=table, DIM_IN=dims[0], DIM_OUT=dims[1], WEIGHTS=problem.weight_numel,
        TRANSPOSED=transposed, IR_MUL_IN=layouts[0], IR_MUL_OUT=layouts[1], ROWS=rows,
        BLOCK_IN=BLOCK_IN, BLOCK_OUT=LANES, lanes=4 * LANES,
    )  # fmt: skip
    return out

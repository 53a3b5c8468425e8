"""Rows in ``mul_ir`` layout into ``ir_mul``, all blocks in one launch.

fastmlip/layout.py says what the layouts are. A program owns a row and a block of irreps.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from e3nn.o3 import Irreps

from fastmlip.problem import TensorProductProblem

from ._channels import inside, load
from ._launches import LANES, Table
from ._run import kernel, run

Tensor = torch.Tensor


@triton.constexpr_function
def _blocks(table):
    return len(table)


@triton.constexpr_function
def _block(table, b, field):
    return table[b][{"offset": 0, "mul": 1, "dim": 2}[field]]


@kernel()
def _pack_kernel(
    out,  # [N, DIM], in ir_mul
    x,  # [N, DIM], in mul_ir
    TABLE: tl.constexpr,  # ((offset, mul, dim), ...)
    DIM: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * DIM
    for b in tl.static_range(_blocks(TABLE)):
        if tl.program_id(1) == b:
            at = row + _block(TABLE, b, "offset")
            for start in tl.static_range(0, _block(TABLE, b, "mul"), BLOCK_U):
                u = start + tl.arange(0, BLOCK_U)
                mask = inside(u, _block(TABLE, b, "mul"), BLOCK_U)
                values = load(
                    x + at + u * _block(TABLE, b, "dim"), _block(TABLE, b, "dim"), 1, mask
                )
                for m in tl.static_range(_block(TABLE, b, "dim")):
                    to = out + at + m * _block(TABLE, b, "mul") + u
                    tl.store(to, values[m], mask=mask)


@cache
def _table(irreps: str) -> Table:
    offset, rows = 0, []
    for mul, ir in Irreps(irreps):
        if mul:
            rows.append((offset, mul, ir.dim))
        offset += mul * ir.dim
    return Table(rows)


def pack(x: Tensor, irreps: str) -> Tensor:
    """``x [N, irreps.dim]`` in ``mul_ir`` layout, in ``ir_mul``."""
    x, table = x.contiguous(), _table(irreps)
    if all(1 in block[1:] for block in table):
        return x
    out = torch.empty_like(x)
    run(
        _pack_kernel, (x.shape[0], len(table)),
        out, x, TABLE=table, DIM=x.shape[1], BLOCK_U=LANES, lanes=LANES,
    )  # fmt: skip
    return out


def packed(x: Tensor, irreps: str, problem: TensorProductProblem) -> Tensor:
    """``x [N, irreps.dim]`` in the layout of ``problem``, in ``ir_mul``."""
    return x.contiguous() if problem.layout == "ir_mul" else pack(x, irreps)

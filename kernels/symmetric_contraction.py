"""GPU kernels of symmetric_contraction; fastmlip/ops/symmetric_contraction.py states the formula,
and fastmlip/polynomial.py the tables that they read.

A program owns a row of a node, which is an output (value) or an input (dx), and a block of
channels; or a term of a type, whose nodes it walks in their order, a few at a time (dcoefficients).
No atomics: the same bits in every run. One kernel serves every polynomial: its terms are in memory,
and all programs read the same ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastmlip.polynomial import HEADER

from ._channels import inside
from ._launches import LANES
from ._run import kernel, run

Tensor = torch.Tensor
VALUES, SLOPES = HEADER - 2, HEADER - 1  # where the table says where they begin
NODES = 4  # that a program of dcoefficients takes at a time


@triton.jit
def _factor(rows, number, U: tl.constexpr, u, mask, OTHER: tl.constexpr):
    """Input ``number`` of a node, counted from 1; OTHER for 0, the factor 1 or its derivative."""
    return tl.load(rows + (number - 1) * U + u, mask=mask & (number > 0), other=OTHER)


@kernel("types", "tables")
def _symmetric_contraction_kernel(
    out,  # [N, ROWS, U]
    x,  # [N, INPUTS, U]
    along,  # like x; None in first order
    y,  # [N, LAST, U]: the last factor, x or the gradient of the outputs
    y_along,  # like y, or None
    coefficients,  # [num_types, TERMS, U]
    types,  # [N] or longer
    tables,  # of Polynomial
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    LAST: tl.constexpr,
    TERMS: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    node, row = program // ROWS, program % ROWS
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask = inside(u, U, BLOCK_U)
    of_type = coefficients + tl.load(types + node) * (TERMS * U) + u
    x += node * (INPUTS * U)
    y += node * (LAST * U)
    if along is not None:
        along += node * (INPUTS * U)
    if y_along is not None:
        y_along += node * (LAST * U)

    at = tl.load(tables + PART) + row
    total = tl.zeros((BLOCK_U,), out.dtype.element_ty)
    for group in range(tl.load(tables + at), tl.load(tables + at + 1), 4):
        i, j = tl.load(tables + group), tl.load(tables + group + 1)
        left, right = _factor(x, i, U, u, mask, 1.0), _factor(x, j, U, u, mask, 1.0)
        last = tl.zeros((BLOCK_U,), out.dtype.element_ty)
        dlast = tl.zeros((BLOCK_U,), out.dtype.element_ty)
        for product in range(tl.load(tables + group + 3), tl.load(tables + group + 7)):
            word = tl.load(tables + product)
            c = tl.load(of_type + (word >> 16) * U, mask=mask, other=0.0)
            last += c * _factor(y, word & 65535, U, u, mask, 1.0)
            if y_along is not None:
                dlast += c * _factor(y_along, word & 65535, U, u, mask, 0.0)
        if along is None:
            value = left * right * last
        else:
            dleft = _factor(along, i, U, u, mask, 0.0)
            dright = _factor(along, j, U, u, mask, 0.0)
            value = (dleft * right + left * dright) * last + left * right * dlast
        total += value * tl.load(tables + group + 2).to(out.dtype.element_ty)
    tl.store(out + program * U + u, total, mask=mask)


@kernel("node", "pointers", "tables")
def _symmetric_contraction_terms_kernel(
    out,  # [num_types, TERMS, U]
    grad,  # [N, OUTPUTS, U]
    x,  # [N, INPUTS, U]
    along,  # like x; None in first order
    node,  # [N]: nodes of a type are node[pointers[type] : pointers[type + 1]]
    pointers,  # [num_types + 1]
    tables,  # of Polynomial
    FIRST: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    TERMS: tl.constexpr,
    U: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    kind, term = program // TERMS, program % TERMS
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask = inside(u, U, BLOCK_U)
    row = tables + FIRST + term * 4
    output, i, j, k = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    total = tl.zeros((NODES, BLOCK_U), out.dtype.element_ty)
    end = tl.load(pointers + kind + 1)
    for first in range(tl.load(pointers + kind), end, NODES):
        place = first + tl.arange(0, NODES)
        n = tl.load(node + place, mask=place < end, other=0)
        some = (place < end)[:, None] & mask[None, :]
        g = tl.load(grad + (n * OUTPUTS + output)[:, None] * U + u[None, :], mask=some, other=0.0)
        rows = x + (n * (INPUTS * U))[:, None]
        a = _factor(rows, i, U, u[None, :], some, 1.0)
        b = _factor(rows, j, U, u[None, :], some, 1.0)
        c = _factor(rows, k, U, u[None, :], some, 1.0)
        if along is None:
            total += g * a * b * c
        else:
            rows = along + (n * (INPUTS * U))[:, None]
            da = _factor(rows, i, U, u[None, :], some, 0.0)
            db = _factor(rows, j, U, u[None, :], some, 0.0)
            dc = _factor(rows, k, U, u[None, :], some, 0.0)
            total += g * ((da * b + a * db) * c + a * b * dc)
    tl.store(out + program * U + u, tl.sum(total, 0), mask=mask)


# ---------------------------------------------------------------- launchers


def _block(channels: int) -> dict:
    """A block of channels of a warp, several to a lane."""
    lanes = 4 if channels > 2 * LANES else 2 if channels > LANES else 1
    return {"U": channels, "BLOCK_U": lanes * LANES, "lanes": LANES}


def _rows(x, along, y, y_along, coefficients, types, tables, rows: int, part: int) -> Tensor:
    x, along, y, y_along, coefficients, types, tables = (
        t if t is None else t.contiguous()
        for t in (x, along, y, y_along, coefficients, types, tables)
    )
    nodes, inputs, channels = x.shape
    out = x.new_empty((nodes, rows, channels))
    block = _block(channels)
    run(
        _symmetric_contraction_kernel, (nodes * rows, triton.cdiv(channels, block["BLOCK_U"])),
        out, x, along, y, y_along, coefficients, types, tables,
        PART=part, ROWS=rows, INPUTS=inputs, LAST=y.shape[1], TERMS=coefficients.shape[1], **block,
    )  # fmt: skip
    return out


def value(x, along, coefficients, types, tables, outputs: int) -> Tensor:
    """``[N, outputs, U]``."""
    return _rows(x, along, x, along, coefficients, types, tables, outputs, VALUES)


def dx(grad, x, along, coefficients, types, tables) -> Tensor:
    """Shaped like x."""
    return _rows(x, along, grad, None, coefficients, types, tables, x.shape[1], SLOPES)


def dcoefficients(grad, x, along, types, tables, num_types: int, terms: int) -> Tensor:
    """``[num_types, terms, U]``."""
    grad, x, along, tables = (t if t is None else t.contiguous() for t in (grad, x, along, tables))
    nodes, inputs, channels = x.shape
    in_order, node = torch.sort(types.narrow(0, 0, nodes), stable=True)
    kinds = torch.arange(num_types + 1, device=x.device)
    pointers = torch.searchsorted(in_order, kinds)
    out = x.new_empty((num_types, terms, channels))
    block = _block(channels)
    run(
        _symmetric_contraction_terms_kernel,
        (num_types * terms, triton.cdiv(channels, block["BLOCK_U"])),
        out, grad, x, along, node, pointers, tables,
        FIRST=HEADER, OUTPUTS=grad.shape[1], INPUTS=inputs, TERMS=terms, NODES=NODES, **block,
    )  # fmt: skip
    return out

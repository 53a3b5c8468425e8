"""GPU kernel of gate; fastmlip/ops/gate.py states the formula.

A program owns a row and a block of the scalars of one segment, with what they gate. One kernel
gives the values and the first and second derivatives: with f, f', f'' times c at the gate g, and
the direction (hg, hv)::

    first    dg = f' sum_m grad[m] v[m],   dv[m] = f grad[m]
    second   of grad[m]  f' hg v[m] + f hv[m]
             of g        f'' hg sum_m grad[m] v[m] + f' sum_m hv[m] grad[m]
             of v[m]     f' hg grad[m]

where scalars that gate nothing have v = 1, hv = 0 and no gradient of v.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from ._channels import dot, load
from ._launches import LANES, Table
from ._run import kernel, run

Tensor = torch.Tensor


@triton.constexpr_function
def _segments(table):
    return len(table)


@triton.constexpr_function
def _segment(table, s, field):
    fields = {
        "gate": 0, "start": 1, "out": 2, "mul": 3, "dim": 4, "activation": 5, "factor": 6,
        "blocks": 7, "first": 8,
    }  # fmt: skip
    return table[s][fields[field]]


@triton.jit
def _activated(x, NAME: tl.constexpr, ORDER: tl.constexpr):
    """The function, and as many derivatives as ORDER says; the others are not computed."""
    first, second = tl.zeros_like(x), tl.zeros_like(x)
    if NAME == "silu":
        s = 1 / (1 + tl.exp(-x))
        value = x * s
        if ORDER > 0:
            first = s * (1 + x * (1 - s))
        if ORDER > 1:
            second = s * (1 - s) * (2 + x * (1 - 2 * s))
    elif NAME == "tanh":
        small = tl.exp(-2 * tl.abs(x))  # of 0 to 1: nothing overflows
        value = tl.where(x < 0, -1.0, 1.0) * ((1 - small) / (1 + small))
        if ORDER > 0:
            first = 1 - value * value
        if ORDER > 1:
            second = -2 * value * first
    else:
        value, first = x, first + 1
    return value, first, second


@kernel()
def _gate_kernel(
    out,  # [N, DIM_OUT] in order 0; in order 1 the gradient of x, [N, DIM]
    of_grad,  # [N, DIM_OUT], in order 2, where out is [N, DIM]
    x,  # [N, DIM]
    grad,  # [N, DIM_OUT]; None in order 0
    hx,  # [N, DIM]; None below order 2
    TABLE: tl.constexpr,
    DIM: tl.constexpr,
    DIM_OUT: tl.constexpr,
    ORDER: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    for s in tl.static_range(_segments(TABLE)):
        block = tl.program_id(1).to(tl.int64) - _segment(TABLE, s, "first")
        if (block >= 0) & (block < _segment(TABLE, s, "blocks")):
            dim: tl.constexpr = _segment(TABLE, s, "dim")
            components: tl.constexpr = max(dim, 1)
            factor: tl.constexpr = _segment(TABLE, s, "factor")
            u = (block * BLOCK_U).to(tl.int32) + tl.arange(0, BLOCK_U)
            mask = u < _segment(TABLE, s, "mul")
            at_gate = row * DIM + _segment(TABLE, s, "gate") + u
            at_v = row * DIM + _segment(TABLE, s, "start") + u * dim
            at_out = row * DIM_OUT + _segment(TABLE, s, "out") + u * components
            scalar = tl.load(x + at_gate, mask=mask, other=0.0)
            f, f1, f2 = _activated(scalar, _segment(TABLE, s, "activation"), ORDER)
            f, f1, f2 = f * factor, f1 * factor, f2 * factor
            v = load(x + at_v, dim, 1, mask)
            if ORDER == 0:
                if dim == 0:
                    tl.store(out + at_out, f, mask=mask)
                for m in tl.static_range(dim):
                    tl.store(out + at_out + m, f * v[m], mask=mask)
            else:
                g = load(grad + at_out, components, 1, mask)
                through = g[0] if dim == 0 else dot(g, v, components)
                if ORDER == 1:
                    tl.store(out + at_gate, f1 * through, mask=mask)
                    for m in tl.static_range(dim):
                        tl.store(out + at_v + m, f * g[m], mask=mask)
                else:
                    h = tl.load(hx + at_gate, mask=mask, other=0.0)
                    hv = load(hx + at_v, dim, 1, mask)
                    of_gate = f2 * h * through
                    if dim == 0:
                        tl.store(of_grad + at_out, f1 * h, mask=mask)
                    else:
                        of_gate += f1 * dot(hv, g, components)
                    tl.store(out + at_gate, of_gate, mask=mask)
                    for m in tl.static_range(dim):
                        tl.store(of_grad + at_out + m, f1 * h * v[m] + f * hv[m], mask=mask)
                        tl.store(out + at_v + m, f1 * h * g[m], mask=mask)


# ---------------------------------------------------------------- launchers


@cache
def _table(segments: tuple) -> tuple[Table, int]:
    """Segments with the number of blocks of each, and the first of them; and of all."""
    rows, first = [], 0
    for s in segments:
        blocks = -(-s.mul // LANES)
        rows.append((*s, blocks, first))
        first += blocks
    return Table(rows), first


def _launch(out, of_grad, x, grad, hx, segments: tuple, order: int) -> None:
    from fastmlip.ops.gate import dims

    table, blocks = _table(segments)
    columns, dim_out = dims(segments)
    run(
        _gate_kernel, (x.shape[0], blocks), out, of_grad, x, grad, hx,
        TABLE=table, DIM=columns, DIM_OUT=dim_out, ORDER=order, BLOCK_U=LANES, lanes=LANES,
    )  # fmt: skip


def forward(x: Tensor, segments: tuple, dim_out: int) -> Tensor:
    """``[N, dim_out]``"""
    x = x.contiguous()
    out = x.new_empty((x.shape[0], dim_out))
    _launch(out, None, x, None, None, segments, 0)
    return out


def backward(grad: Tensor, x: Tensor, segments: tuple) -> Tensor:
    """The gradient of x."""
    grad, x = grad.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    _launch(dx, None, x, grad, None, segments, 1)
    return dx


def double_backward(hx: Tensor, grad: Tensor, x: Tensor, segments: tuple) -> tuple[Tensor, Tensor]:
    """Gradients of grad and of x."""
    hx, grad, x = hx.contiguous(), grad.contiguous(), x.contiguous()
    dgrad, dx = torch.empty_like(grad), torch.empty_like(x)
    _launch(dx, dgrad, x, grad, hx, segments, 2)
    return dgrad, dx

"""Components of a block of channels, as tuples: what kernels of several operators do with them."""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def inside(u, n: tl.constexpr, BLOCK: tl.constexpr):
    """Which of the columns ``u`` of a block are among the ``n``; a constant, which costs nothing,
    where all of every block are."""
    if n % BLOCK == 0:
        return tl.full((BLOCK,), True, tl.int1)
    else:
        return u < n


@triton.constexpr_function
def channel_step(ir_mul, dim):
    """From a channel to the next in a row of a block, in the layout ``ir_mul`` or in ``mul_ir``."""
    return 1 if ir_mul else dim


@triton.constexpr_function
def component_step(ir_mul, mul):
    """From a component to the next, likewise."""
    return mul if ir_mul else 1


@triton.jit
def load(at, n: tl.constexpr, stride: tl.constexpr, mask):
    """``n`` components of a block of channels; a masked channel reads 0."""
    values = ()
    for m in tl.static_range(n):
        values = values + (tl.load(at + m * stride, mask=mask, other=0.0),)
    return values


@triton.jit
def scale(w, x, n: tl.constexpr):
    values = ()
    for m in tl.static_range(n):
        values = values + (w * x[m],)
    return values


@triton.jit
def add_scaled(v, w, x, n: tl.constexpr):
    values = ()
    for m in tl.static_range(n):
        values = values + (v[m] + w * x[m],)
    return values


@triton.jit
def dot(x, y, n: tl.constexpr):
    total = x[0] * y[0]
    for m in tl.static_range(1, n):
        total += x[m] * y[m]
    return total

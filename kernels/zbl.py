"""GPU kernels of zbl; fastmlip/ops/zbl.py states the formula and the sources of its constants.

One function gives phi or a derivative of it for a block of edges, in float64. Two kernels use it: a
program that owns a node and walks its edges in their fixed order (fwd), and a program that owns a
block of edges (bwd). No atomics: the same bits in every run.
"""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastmlip.ops.edge_order import EdgeOrder, edge_order
from fastmlip.ops.zbl import R_MIN, SCREENING, SCREENING_LENGTH, SCREENING_POWER

from ._run import kernel, run

Tensor = torch.Tensor
BLOCK_NODE = 32  # edges of a node at a time: one warp
BLOCK_EDGE = 64


@triton.constexpr_function
def _field(screening, k, i):
    """Coefficient (i = 0) or decay (i = 1) of term k."""
    return screening[k][i]


@triton.constexpr_function
def _is_integer(exponent):
    return float(exponent).is_integer() and abs(exponent) < 128


@triton.constexpr_function
def _bit(exponent, i):
    return (int(abs(exponent)) >> i) & 1 == 1


@triton.constexpr_function
def _binomial(n, k):
    value = 1
    for i in range(k):
        value = value * (n - i) // (i + 1)
    return float(value)


@triton.jit
def _power(t, EXPONENT: tl.constexpr):
    if _is_integer(EXPONENT):
        result = tl.full(t.shape, 1.0, tl.float64)
        for i in tl.static_range(7):
            if _bit(EXPONENT, i):
                result = result * t
            t = t * t
        if EXPONENT < 0:
            result = 1.0 / result
    else:
        result = tl.exp(tl.log(t) * EXPONENT)
    return result


@triton.jit
def _derivative(
    r, a, charges, cutoff, P: tl.constexpr, ORDER: tl.constexpr, NORMED: tl.constexpr,
    SCREENING: tl.constexpr, R_MIN: tl.constexpr,
):  # fmt: skip
    """phi^(ORDER) of a block of edges, the product v u by Leibniz' rule, with t = r s = r / cutoff.

    v = psi(a r) / r has r v = psi, so r v^(n) + n v^(n-1) = psi^(n).
    """
    r_min = tl.full(r.shape, R_MIN, tl.float64)  # a comparison rounds a Python number to float32
    close = r < r_min
    r = tl.where(close, r_min, r)
    inverse = 1.0 / r
    if NORMED:
        t, s = cutoff, cutoff * inverse
    else:
        s = 1.0 / cutoff
        t = r * s

    x = a * r
    terms = ()
    for k in tl.static_range(4):
        terms = terms + (tl.exp(x * -_field(SCREENING, k, 1)) * _field(SCREENING, k, 0),)
    v = ()
    for n in tl.static_range(ORDER + 1):
        value = terms[0] + terms[1] + terms[2] + terms[3]
        if n > 0:
            value = value - v[n - 1] * n
        v = v + (value * inverse,)
        next_terms = ()
        for k in tl.static_range(4):
            next_terms = next_terms + (terms[k] * a * -_field(SCREENING, k, 1),)
        terms = next_terms

    low = _power(t, P - ORDER)  # t^(P - ORDER)
    SLOPE: tl.constexpr = -0.5 * P * (P + 1) * (P + 2)
    phi = tl.zeros_like(r)
    for i in tl.static_range(ORDER + 1):
        # v^(i) u^(ORDER - i), with low = t^(P - ORDER + i)
        if i == ORDER:
            inner = t * (P * (P + 2) - t * (0.5 * P * (P + 1)))
            u = 1.0 - low * (0.5 * (P + 1) * (P + 2) - inner)
        elif i == ORDER - 1:
            u = low * SLOPE * (1.0 - t) * (1.0 - t) * s
        elif i == ORDER - 2:
            u = low * SLOPE * (1.0 - t) * ((P - 1) - t * (P + 1)) * s * s
        else:
            inner = t * (2.0 * P * (P - 1) - t * (P * (P + 1)))
            u = low * SLOPE * ((P - 1) * (P - 2) - inner) * s * s * s
        phi += v[i] * u * _binomial(ORDER, i)
        low = low * t
    zero = t >= 1.0
    if ORDER > 0:
        zero = zero | close
    return tl.where(zero, 0.0, phi * charges)


@triton.jit
def _edge(
    e, mask, dst_type, src_type, length, weight, cutoff, charges, powers, prefactor, num_types,
    P: tl.constexpr, ORDER: tl.constexpr, NORMED: tl.constexpr, SCREENING: tl.constexpr,
    LENGTH: tl.constexpr, R_MIN: tl.constexpr,
):  # fmt: skip
    """Weight times phi^(ORDER) of the edges ``e``; 0 where masked."""
    r = tl.load(length + e, mask=mask, other=1.0).to(tl.float64)
    z = tl.load(charges + dst_type) * tl.load(charges + src_type) * prefactor
    a = (tl.load(powers + dst_type) + tl.load(powers + src_type)) / LENGTH
    at = e if NORMED else dst_type * num_types + src_type
    cut = tl.load(cutoff + at, mask=mask, other=1.0).to(tl.float64)
    phi = _derivative(r, a, z, cut, P, ORDER, NORMED, SCREENING, R_MIN)
    if weight is not None:
        phi *= tl.load(weight + e, mask=mask, other=0.0).to(tl.float64)
    return tl.where(mask, phi, 0.0)


@kernel("types", "pointers", "edges", "senders", "num_types")
def _zbl_fwd_kernel(
    out,  # [num_nodes] float64
    length,  # [E]
    weight,  # [E] or None
    cutoff,  # [E] normed lengths or [T, T] radii
    types,  # [N]
    charges,  # [T] float64
    powers,  # [T] float64
    prefactor,  # [1] float64
    pointers,  # [N + 1]: the edges of node n are edges[pointers[n] : pointers[n + 1]]
    edges,  # [E]
    senders,  # [E], of the edges in this order
    num_types,
    P: tl.constexpr,
    ORDER: tl.constexpr,
    NORMED: tl.constexpr,
    SCREENING: tl.constexpr,
    LENGTH: tl.constexpr,
    R_MIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)
    dst_type = tl.load(types + node)
    factor = tl.load(prefactor)
    end = tl.load(pointers + node + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(tl.load(pointers + node), end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < end
        e = tl.load(edges + i, mask=mask, other=0)
        src_type = tl.load(types + tl.load(senders + i, mask=mask, other=0))
        total += _edge(
            e, mask, dst_type, src_type, length, weight, cutoff, charges, powers, factor, num_types,
            P, ORDER, NORMED, SCREENING, LENGTH, R_MIN,
        )  # fmt: skip
    tl.store(out + node, tl.sum(total))


@kernel("receivers", "senders", "types", "num_types", "num_edges")
def _zbl_bwd_kernel(
    out,  # [E]
    grad,  # [num_nodes] float64
    length,  # [E]
    weight,  # [E] or None
    cutoff,  # [E] normed lengths or [T, T] radii
    receivers,  # [E]
    senders,  # [E]
    types,  # [N]
    charges,  # [T] float64
    powers,  # [T] float64
    prefactor,  # [1] float64
    num_types,
    num_edges,
    P: tl.constexpr,
    ORDER: tl.constexpr,
    NORMED: tl.constexpr,
    SCREENING: tl.constexpr,
    LENGTH: tl.constexpr,
    R_MIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = e < num_edges
    node = tl.load(receivers + e, mask=mask, other=0)
    dst_type = tl.load(types + node)
    src_type = tl.load(types + tl.load(senders + e, mask=mask, other=0))
    phi = _edge(
        e, mask, dst_type, src_type, length, weight, cutoff, charges, powers, tl.load(prefactor),
        num_types, P, ORDER, NORMED, SCREENING, LENGTH, R_MIN,
    )  # fmt: skip
    g = tl.load(grad + node)
    tl.store(out + e, (g * phi).to(out.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- launchers


def _constants(normed: bool, p: float, order: int, block: int) -> dict:
    return {
        "P": p,
        "ORDER": order,
        "NORMED": normed,
        "SCREENING": SCREENING,
        "LENGTH": SCREENING_LENGTH,
        "R_MIN": R_MIN,
        "BLOCK": block,
    }


def nodes(
    edge_length, weight, normed_length, cutoff, edge_index, atom_types, atomic_numbers, prefactor,
    p, order, num_nodes,
) -> Tensor:  # fmt: skip
    """``[num_nodes]`` float64, a column where edge_length is one"""
    cutoffs = normed_length if cutoff is None else cutoff
    charges = atomic_numbers.double().contiguous()
    table = edge_order(*edge_index.unbind(), atom_types.shape[0])
    ends = EdgeOrder(table, atom_types.shape[0], edge_length.shape[0])
    out = edge_length.new_empty((num_nodes, *edge_length.shape[1:]), dtype=torch.float64)
    run(
        _zbl_fwd_kernel, (num_nodes,),
        out, edge_length.contiguous(), None if weight is None else weight.contiguous(),
        cutoffs.contiguous(), atom_types.contiguous(), charges, charges**SCREENING_POWER,
        prefactor.double(), ends.dst_ptr, ends.dst_edge, ends.dst_src, charges.shape[0],
        lanes=32, **_constants(cutoff is None, p, order, BLOCK_NODE),
    )  # fmt: skip
    return out


def edges(
    grad, edge_length, weight, normed_length, cutoff, edge_index, atom_types, atomic_numbers,
    prefactor, p, order,
) -> Tensor:  # fmt: skip
    """Shaped like edge_length, in its dtype"""
    cutoffs = normed_length if cutoff is None else cutoff
    charges = atomic_numbers.double().contiguous()
    out = torch.empty_like(edge_length, memory_format=torch.contiguous_format)
    num_edges = edge_length.shape[0]
    run(
        _zbl_bwd_kernel, (-(-num_edges // BLOCK_EDGE),),
        out, grad.contiguous(), edge_length.contiguous(),
        None if weight is None else weight.contiguous(), cutoffs.contiguous(),
        *(end.contiguous() for end in edge_index.unbind()), atom_types.contiguous(), charges,
        charges**SCREENING_POWER, prefactor.double(), charges.shape[0], num_edges,
        lanes=32, **_constants(cutoff is None, p, order, BLOCK_EDGE),
    )  # fmt: skip
    return out

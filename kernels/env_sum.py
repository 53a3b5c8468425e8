"""GPU kernels of env_sum; fastmlip/ops/env_sum.py states the formula.

A program owns a node and a block of channels and walks the node's edges in their fixed order (fwd),
or owns an edge, with all channels, one block after the other (bwd). No atomics: the same bits in
every run. Second order, with directions hw and ha, adds both products in fwd; bwd takes them in the
places of w and a.
"""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastmlip.ops.edge_order import EdgeOrder

from ._channels import inside
from ._launches import LANES
from ._run import kernel, run

Tensor = torch.Tensor


@triton.constexpr_function
def _length(dims):
    return len(dims)


@triton.constexpr_function
def _dim(dims, b):
    return dims[b]


@triton.constexpr_function
def _column(dims, b, m):
    return sum(dims[:b]) + m


@kernel("pointers", "edges")
def _env_sum_fwd_kernel(
    out,  # [N, DIM, U]
    edge_weight,  # [E, ROWS, U]
    hw,  # like edge_weight; hw and ha are None in first order
    edge_attr,  # [E, DIM]
    ha,
    pointers,  # [N + 1]: the edges of node n are edges[pointers[n] : pointers[n + 1]]
    edges,  # [E]
    DIMS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask = inside(u, U, BLOCK_U)

    sums = ()
    for _ in tl.static_range(DIM):
        sums = sums + (tl.zeros((BLOCK_U,), out.dtype.element_ty),)
    for i in range(tl.load(pointers + node), tl.load(pointers + node + 1)):
        e = tl.load(edges + i)
        new_sums = ()
        for b in tl.static_range(_length(DIMS)):
            at = (e * ROWS + (b if ROWS > 1 else 0)) * U + u
            w = tl.load(edge_weight + at, mask=mask, other=0.0)
            if hw is not None:
                w2 = tl.load(hw + at, mask=mask, other=0.0)
            for m in tl.static_range(_dim(DIMS, b)):
                at_a = e * DIM + _column(DIMS, b, m)
                total = sums[_column(DIMS, b, m)]
                if hw is not None:
                    total += w2 * tl.load(edge_attr + at_a) + w * tl.load(ha + at_a)
                else:
                    total += w * tl.load(edge_attr + at_a)
                new_sums = new_sums + (total,)
        sums = new_sums
    for column in tl.static_range(DIM):
        tl.store(out + (node * DIM + column) * U + u, sums[column], mask=mask)


@kernel("edges", "receivers")
def _env_sum_bwd_kernel(
    dw,  # [E, ROWS, U]
    da,  # [E, DIM]
    edge_weight,  # [E, ROWS, U]
    edge_attr,  # [E, DIM]
    grad,  # [N, DIM, U]
    edges,  # [E], in some order
    receivers,  # [E], of the edges in this order
    DIMS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    e, node = tl.load(edges + i), tl.load(receivers + i)
    das = ()
    for _ in tl.static_range(DIM):
        das = das + (tl.zeros((BLOCK_U,), dw.dtype.element_ty),)
    for block in range(BLOCKS):
        u = block * BLOCK_U + tl.arange(0, BLOCK_U)
        mask = inside(u, U, BLOCK_U)
        new_das, total = (), tl.zeros((BLOCK_U,), dw.dtype.element_ty)
        for b in tl.static_range(_length(DIMS)):
            at = (e * ROWS + (b if ROWS > 1 else 0)) * U + u
            w = tl.load(edge_weight + at, mask=mask, other=0.0)
            if ROWS > 1:
                total = tl.zeros((BLOCK_U,), dw.dtype.element_ty)
            for m in tl.static_range(_dim(DIMS, b)):
                at_g = (node * DIM + _column(DIMS, b, m)) * U + u
                g = tl.load(grad + at_g, mask=mask, other=0.0)
                total += g * tl.load(edge_attr + e * DIM + _column(DIMS, b, m))
                new_das = new_das + (das[_column(DIMS, b, m)] + g * w,)
            if ROWS > 1 or b == _length(DIMS) - 1:
                tl.store(dw + at, total, mask=mask)
        das = new_das
    for column in tl.static_range(DIM):
        tl.store(da + e * DIM + column, tl.sum(das[column]))


# ---------------------------------------------------------------- launchers


def _sizes(edge_weight: Tensor, dims: tuple[int, ...]) -> dict:
    _, rows, channels = edge_weight.shape
    return {"DIMS": dims, "DIM": sum(dims), "ROWS": rows, "U": channels, "BLOCK_U": LANES}


def _receive(w, hw, a, ha, order, dims, num_nodes) -> Tensor:
    w, hw, a, ha = (t if t is None else t.contiguous() for t in (w, hw, a, ha))
    out = w.new_empty((num_nodes, sum(dims), w.shape[2]))
    ends = EdgeOrder(order, num_nodes, a.shape[0])
    run(
        _env_sum_fwd_kernel, (num_nodes, -(-w.shape[2] // LANES)),
        out, w, hw, a, ha, ends.dst_ptr, ends.dst_edge, lanes=LANES, **_sizes(w, dims),
    )  # fmt: skip
    return out


def _send(grad, w, a, order, dims) -> tuple[Tensor, Tensor]:
    grad, w, a = grad.contiguous(), w.contiguous(), a.contiguous()
    dw, da = torch.empty_like(w), torch.empty_like(a)
    ends = EdgeOrder(order, grad.shape[0], a.shape[0])
    run(
        _env_sum_bwd_kernel, (a.shape[0],),
        dw, da, w, a, grad, ends.src_edge, ends.src_dst, lanes=LANES,
        **_sizes(w, dims), BLOCKS=-(-w.shape[2] // LANES),
    )  # fmt: skip
    return dw, da


def forward(w, a, order, dims, num_nodes) -> Tensor:
    """``[N, DIM, U]``."""
    return _receive(w, None, a, None, order, dims, num_nodes)


def backward(grad, w, a, order, dims, num_nodes) -> tuple[Tensor, Tensor]:
    """Gradients of edge_weight and edge_attr."""
    return _send(grad, w, a, order, dims)


def double_backward(hw, ha, grad, w, a, order, dims, num_nodes) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of grad, edge_weight and edge_attr."""
    return _receive(w, hw, a, ha, order, dims, num_nodes), *_send(grad, hw, ha, order, dims)

"""GPU kernels of edge_vectors; fastmlip/ops/edge_vectors.py states the formulas.

A program owns a node and walks its edges in their fixed order, a warp of them at a time: those that
point to it (fwd), and those that start at it, then those that point to it (bwd). No atomics: the
same bits in every run.
"""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastmlip.ops.edge_order import EdgeOrder

from ._channels import load
from ._launches import LANES
from ._run import kernel, run

Tensor = torch.Tensor


@kernel("pointers", "edges", "senders")
def _edge_vectors_fwd_kernel(
    out,  # [E, 3]
    positions,  # [N, 3]
    pointers,  # [N + 1]: the edges of node n are edges[pointers[n] : pointers[n + 1]]
    edges,  # [E]
    senders,  # [E], of the edges in this order
    BLOCK: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)
    end = tl.load(pointers + node + 1)
    for start in range(tl.load(pointers + node), end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < end
        e = tl.load(edges + i, mask=mask, other=0)
        sender = tl.load(senders + i, mask=mask, other=0)
        tails = load(positions + sender * 3, 3, 1, mask)
        for k in tl.static_range(3):
            vector = tails[k] - tl.load(positions + node * 3 + k)
            tl.store(out + e * 3 + k, vector, mask=mask)


@triton.jit
def _add_rows(sums, sign: tl.constexpr, grad, pointers, edges, node, BLOCK: tl.constexpr):
    """``sums[k] + sign * grad[e, k]`` over the edges e of a node, lane by lane."""
    end = tl.load(pointers + node + 1)
    for start in range(tl.load(pointers + node), end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < end
        rows = load(grad + tl.load(edges + i, mask=mask, other=0) * 3, 3, 1, mask)
        new_sums = ()
        for k in tl.static_range(3):
            new_sums = new_sums + (sums[k] + sign * rows[k],)
        sums = new_sums
    return sums


@kernel("dst_pointers", "dst_edges", "src_pointers", "src_edges")
def _edge_vectors_bwd_kernel(
    out,  # [N, 3]
    grad,  # [E, 3]
    dst_pointers,  # [N + 1]
    dst_edges,  # [E]
    src_pointers,
    src_edges,
    BLOCK: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)
    sums = ()
    for _ in tl.static_range(3):
        sums = sums + (tl.zeros((BLOCK,), out.dtype.element_ty),)
    sums = _add_rows(sums, 1, grad, src_pointers, src_edges, node, BLOCK)
    sums = _add_rows(sums, -1, grad, dst_pointers, dst_edges, node, BLOCK)
    for k in tl.static_range(3):
        tl.store(out + node * 3 + k, tl.sum(sums[k]))


# ---------------------------------------------------------------- launchers


def forward(positions: Tensor, order: Tensor, num_edges: int) -> Tensor:
    """``[E, 3]``."""
    positions = positions.contiguous()
    nodes = positions.shape[0]
    out = positions.new_empty((num_edges, 3))
    ends = EdgeOrder(order, nodes, num_edges)
    run(
        _edge_vectors_fwd_kernel, (nodes,),
        out, positions, ends.dst_ptr, ends.dst_edge, ends.dst_src, BLOCK=LANES, lanes=LANES,
    )  # fmt: skip
    return out


def backward(grad: Tensor, order: Tensor, num_nodes: int) -> Tensor:
    """The gradient of positions, ``[N, 3]``."""
    grad = grad.contiguous()
    out = grad.new_empty((num_nodes, 3))
    ends = EdgeOrder(order, num_nodes, grad.shape[0])
    run(
        _edge_vectors_bwd_kernel, (num_nodes,),
        out, grad, ends.dst_ptr, ends.dst_edge, ends.src_ptr, ends.src_edge,
        BLOCK=LANES, lanes=LANES,
    )  # fmt: skip
    return out

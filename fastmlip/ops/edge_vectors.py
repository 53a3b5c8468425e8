"""Vectors of edges, from the receiver to the sender, and forces from their gradients.

For an edge e from node ``src[e]`` to node ``dst[e]``, and with a gradient g for each edge::

    vectors[e]    = positions[src[e]] - positions[dst[e]]
    dpositions[n] = sum over e with src[e] = n of g[e]  -  sum over e with dst[e] = n of g[e]

Each is the transpose of the other, so the two operators close the ladder of derivatives. The sums
of a node run over its edges in the order they come in: the same bits in every run and for any
number of threads, where a sum edge by edge into rows of nodes, as compiled models would have it,
depends on which thread comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastmlip import backend
from fastmlip.ops.edge_order import check_edges, check_order, check_range, edge_order
from fastmlip.ops.ladder import Rung, ladder

Tensor = torch.Tensor


def edge_vectors(
    positions: Tensor, edge_dst: Tensor, edge_src: Tensor, order: Tensor | None = None
) -> Tensor:
    """``[E, 3]`` of this page, in the dtype of ``positions``.

    Args:
        positions: ``[N, 3]``, float32 or float64, in any unit.
        edge_dst: receivers ``[E]``, int32 or int64, in ``[0, N)``, in any order.
        edge_src: senders ``[E]``, likewise.
        order: :func:`fastmlip.ops.edge_order` of the edges, where the caller keeps it.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: an index out of range.
    """
    _check(positions, edge_dst, edge_src)
    nodes, edges = positions.shape[0], edge_dst.shape[0]
    which = backend.choose(positions)
    if which == "reference":
        check_range(edge_dst, edge_src, nodes)
        return reference(positions, edge_dst, edge_src)
    if order is None:
        order = edge_order(edge_dst, edge_src, nodes)
    elif which == "triton":  # C++ looks itself
        check_order(order, nodes, edges, positions.device)
    return (_CPP if which == "cpp" else _TRITON)["forward"](positions, order, edges)


def _check(positions: Tensor, edge_dst: Tensor, edge_src: Tensor) -> None:
    if positions.dim() != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions: expected shape [N, 3], got {tuple(positions.shape)}")
    if positions.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"positions: expected float32 or float64, got {positions.dtype}")
    check_edges(edge_dst, edge_src, positions, "positions")


def reference(positions: Tensor, edge_dst: Tensor, edge_src: Tensor) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    return positions.index_select(0, edge_src) - positions.index_select(0, edge_dst)


# ---------------------------------------------------------------- the Triton operators


@backend.triton_op("fastmlip::edge_vectors", mutates_args=())
def _forward(positions: Tensor, order: Tensor, num_edges: int) -> Tensor:
    from fastmlip.kernels import edge_vectors as kernels

    return kernels.forward(positions, order, num_edges)


@backend.triton_op("fastmlip::edge_vectors_backward", mutates_args=())
def _backward(grad: Tensor, order: Tensor, num_nodes: int) -> Tensor:
    """The gradient of positions."""
    from fastmlip.kernels import edge_vectors as kernels

    return kernels.backward(grad, order, num_nodes)


# ---------------------------------------------------------------- derivatives of both


def _save(ctx, inputs, output) -> None:
    operand, order, _ = inputs
    ctx.save_for_backward(order)
    ctx.rows = operand.shape[0]


def _forward_vjp(rungs, ctx, g):
    (order,) = ctx.saved_tensors
    return rungs["backward"](g, order, ctx.rows), None, None


def _backward_vjp(rungs, ctx, h):
    (order,) = ctx.saved_tensors
    return rungs["forward"](h, order, ctx.rows), None, None


def _ladder(suffix: str) -> dict[str, Callable[..., Any]]:
    names = (f"edge_vectors{suffix}", f"edge_vectors_backward{suffix}")
    forward, backward = (getattr(torch.ops.fastmlip, name).default for name in names)
    return ladder(
        {
            "forward": Rung(forward, _save, _forward_vjp),
            "backward": Rung(backward, _save, _backward_vjp),
        }
    )


_TRITON = _CPP = _ladder("")

if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::edge_vectors_cpu")
    def _(positions, order, num_edges):
        return positions.new_empty((num_edges, 3))

    @torch.library.register_fake("fastmlip::edge_vectors_backward_cpu")
    def _(grad, order, num_nodes):
        return grad.new_empty((num_nodes, 3))

    _CPP = _ladder("_cpu")

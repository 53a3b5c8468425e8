"""The environment of a node, the sum of its edges' weighted tensors: Allegro's
``MakeWeightedChannels`` and the scatter that follows it.

With U channels u, blocks l of the columns i of ``edge_attr`` (the spherical harmonics of a degree)
and l(i) the block of a column::

    env[n, i, u] = sum over edges e with edge_dst[e] = n:
        edge_weight[e, l(i), u] * edge_attr[e, i]

where Allegro's layout has the channels in front, ``[N, U, i]`` and ``[E, U, l]``: here they are
innermost, so that neighbours in memory do the same. Nothing of E * i * U numbers is made.

L(w, a, g) = <g, env(w, a)> is linear in each of w = edge_weight, a = edge_attr and g; its
derivatives are those of :mod:`fastmlip.ops.multilinear`. Sums over edges run in the fixed order of
:mod:`fastmlip.ops.edge_order`: the same bits in every run and for any number of threads.
"""

from __future__ import annotations

import torch

from fastmlip import backend
from fastmlip.backend import FLOATS
from fastmlip.ops.edge_order import EdgeOrder, assert_in_range, check_order, edge_order
from fastmlip.ops.multilinear import multilinear_ladder

Tensor = torch.Tensor


def env_sum(
    edge_weight: Tensor,
    edge_attr: Tensor,
    edge_dst: Tensor,
    num_nodes: int,
    dims: tuple[int, ...],
    tables: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """The sum of this page, ``[N, I, U]``.

    Args:
        edge_weight: ``[E, L, U]``, float32 or float64; or ``[E, 1, U]``, one for all blocks.
        edge_attr: ``[E, I]``, dtype of ``edge_weight``.
        edge_dst: centres ``[E]``, int32 or int64, in ``[0, N)``, in any order.
        num_nodes: N.
        dims: columns of each of the L blocks of ``edge_attr``.
        tables: ``torch.tensor(dims)``, where the caller keeps it.
        order: :func:`fastmlip.ops.edge_order` of the edges, where the caller keeps it; its senders
            do not matter.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: an index out of range.

    """
    _check(edge_weight, edge_attr, edge_dst, num_nodes, dims)
    where = backend.choose(edge_weight)
    if where == "reference" or (where == "triton" and order is None):
        assert_in_range(edge_dst, "edge_dst", num_nodes, "num_nodes")
    if where == "reference":
        return reference(edge_weight, edge_attr, edge_dst, num_nodes, dims)
    if order is None:
        order = edge_order(edge_dst, edge_dst, num_nodes)
    elif where == "triton":  # C++ looks itself
        check_order(order, num_nodes, edge_dst.shape[0], edge_weight.device)
    elif order.shape != (EdgeOrder.size(num_nodes, edge_dst.shape[0]),):
        raise ValueError(f"order: not the edge_order of these edges, got {tuple(order.shape)}")
    if where == "triton":
        return _TRITON["forward"](edge_weight, edge_attr, order, list(dims), num_nodes)
    if tables is None:
        tables = torch.tensor(dims, dtype=torch.int64)
    return _CPP["forward"](edge_weight, edge_attr, order, tables, num_nodes)


def _check(edge_weight, edge_attr, edge_dst, num_nodes, dims) -> None:
    if not isinstance(num_nodes, (int, torch.SymInt)) or num_nodes < 0:
        raise ValueError(f"num_nodes: expected a count, got {num_nodes}")
    if edge_weight.dtype not in FLOATS:
        raise TypeError(f"edge_weight: expected float32 or float64, got {edge_weight.dtype}")
    if edge_attr.dtype != edge_weight.dtype:
        raise TypeError(
            f"edge_attr: expected {edge_weight.dtype} as edge_weight has, got {edge_attr.dtype}"
        )
    if edge_dst.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"edge_dst: expected int32 or int64, got {edge_dst.dtype}")
    if edge_dst.dim() != 1:
        raise ValueError(f"edge_dst: expected shape [E], got {tuple(edge_dst.shape)}")
    blocks, columns = len(dims), sum(dims)
    if edge_weight.dim() != 3 or edge_weight.shape[1] not in (1, blocks):
        raise ValueError(
            f"edge_weight: expected shape [E, 1 or {blocks}, U], got {tuple(edge_weight.shape)}"
        )
    if edge_attr.dim() != 2 or edge_attr.shape[1] != columns:
        raise ValueError(f"edge_attr: expected shape [E, {columns}], got {tuple(edge_attr.shape)}")
    edges = edge_dst.shape[0]
    for name, value in (("edge_weight", edge_weight), ("edge_attr", edge_attr)):
        if value.shape[0] != edges:
            raise ValueError(
                f"{name}: expected E = {edges} rows as in edge_dst, got {value.shape[0]}"
            )
    for name, value in (("edge_attr", edge_attr), ("edge_dst", edge_dst)):
        if value.device != edge_weight.device:
            raise ValueError(
                f"{name}: expected device {edge_weight.device} as edge_weight has, got "
                f"{value.device}"
            )


def reference(
    edge_weight: Tensor,
    edge_attr: Tensor,
    edge_dst: Tensor,
    num_nodes: int,
    dims: tuple[int, ...],
) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    if edge_weight.shape[1] != 1:
        repeats = torch.tensor(dims, device=edge_weight.device)
        edge_weight = edge_weight.repeat_interleave(repeats, 1, output_size=sum(dims))
    out = edge_weight.new_zeros(num_nodes, edge_attr.shape[1], edge_weight.shape[2])
    return out.index_add(0, edge_dst.long(), edge_weight * edge_attr.unsqueeze(2))


@backend.triton_op("fastmlip::env_sum", mutates_args=())
def _forward(
    edge_weight: Tensor, edge_attr: Tensor, order: Tensor, dims: list[int], num_nodes: int
) -> Tensor:
    from fastmlip.kernels import env_sum as kernels

    return kernels.forward(edge_weight, edge_attr, order, tuple(dims), num_nodes)


@backend.triton_op("fastmlip::env_sum_backward", mutates_args=())
def _backward(
    grad: Tensor, edge_weight: Tensor, edge_attr: Tensor, order: Tensor, dims: list[int],
    num_nodes: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to edge_weight, edge_attr."""
    from fastmlip.kernels import env_sum as kernels

    return kernels.backward(grad, edge_weight, edge_attr, order, tuple(dims), num_nodes)


@backend.triton_op("fastmlip::env_sum_double_backward", mutates_args=())
def _double_backward(
    hw: Tensor, ha: Tensor, grad: Tensor, edge_weight: Tensor, edge_attr: Tensor, order: Tensor,
    dims: list[int], num_nodes: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to grad, edge_weight, edge_attr."""
    from fastmlip.kernels import env_sum as kernels

    operands = hw, ha, grad, edge_weight, edge_attr, order
    return kernels.double_backward(*operands, tuple(dims), num_nodes)


_TRITON = multilinear_ladder("env_sum", 2)

if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::env_sum_cpu")
    def _(edge_weight, edge_attr, order, dims, num_nodes):
        return edge_weight.new_empty((num_nodes, edge_attr.shape[1], edge_weight.shape[2]))

    def _like(*tensors):
        return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)

    @torch.library.register_fake("fastmlip::env_sum_backward_cpu")
    def _(grad, edge_weight, edge_attr, order, dims, num_nodes):
        return _like(edge_weight, edge_attr)

    @torch.library.register_fake("fastmlip::env_sum_double_backward_cpu")
    def _(hw, ha, grad, edge_weight, edge_attr, order, dims, num_nodes):
        return _like(grad, edge_weight, edge_attr)

    _CPP = multilinear_ladder("env_sum_cpu", 2)

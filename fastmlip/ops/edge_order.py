"""Edges in receiver order and in sender order, as one int64 tensor.

``order = [dst_ptr | src_ptr | dst_edge | dst_src | src_edge | src_dst | node | place]``, the first
two of N + 1, the last two of N, the others of E entries.

Edges ``dst_edge[dst_ptr[i] : dst_ptr[i + 1]]`` point to node ``node[i]`` and come from the nodes
``dst_src`` of the same range; edges ``src_edge[src_ptr[i] : src_ptr[i + 1]]`` start at ``node[i]``
and point to the nodes ``src_dst``; ``place[node[i]] = i``. Within a node edges keep the order they
were given in, so sums over them always run in the same order. Edges that are already sorted are not
sorted again (C++: one linear pass).

``node[i]`` is i, or on the C++ backend, with positions of more than 1,000 nodes, the i-th along a
Hilbert curve through space. Kernels walk nodes in this order: in a system larger than the caches,
nodes that follow one another then share most of their neighbours. The order changes no bit of what
they compute (:mod:`fastmlip.ops.radial_conv` names its one exception). Triton kernels walk nodes
from 0 to N - 1 and refuse another order.
"""

from __future__ import annotations

import torch

from fastmlip import backend, torch_private
from fastmlip.ops.ladder import register_vmap

_MADE = "_fastmlip_writes"  # of a table that was made here: the writes to it until then
_IN_RANGE = "_fastmlip_in_range"  # of an index that was read here: the writes until then, the range


class EdgeOrder:
    """Names for the parts of an ``order`` tensor of ``num_nodes`` nodes and ``num_edges`` edges."""

    def __init__(self, order: torch.Tensor, num_nodes: int, num_edges: int) -> None:
        nodes, edges = num_nodes + 1, num_edges
        sizes = [nodes, nodes, edges, edges, edges, edges, num_nodes, num_nodes]
        self.dst_ptr, self.src_ptr, *parts = order.split(sizes)
        self.dst_edge, self.dst_src, self.src_edge, self.src_dst, self.node, self.place = parts

    @staticmethod
    def size(num_nodes: int, num_edges: int) -> int:
        """Entries of the tensor."""
        return 4 * num_nodes + 4 * num_edges + 2

    def edge_dst(self) -> torch.Tensor:
        return torch.empty_like(self.src_dst).index_copy(0, self.src_edge, self.src_dst)

    def edge_src(self) -> torch.Tensor:
        return torch.empty_like(self.dst_src).index_copy(0, self.dst_edge, self.dst_src)


def reference(edge_dst: torch.Tensor, edge_src: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """The same table from stable sorts; works on any device, without host synchronisation."""
    edge_dst, edge_src = edge_dst.long(), edge_src.long()
    nodes = torch.arange(num_nodes + 1, device=edge_dst.device)
    sorted_dst, by_dst = torch.sort(edge_dst, stable=True)
    sorted_src, by_src = torch.sort(edge_src, stable=True)
    pointers = [torch.searchsorted(index, nodes) for index in (sorted_dst, sorted_src)]
    dst_src, src_dst = edge_src.index_select(0, by_dst), edge_dst.index_select(0, by_src)
    own = nodes.narrow(0, 0, num_nodes)
    return torch.cat([*pointers, by_dst, dst_src, by_src, src_dst, own, own])


def assert_in_range(index: torch.Tensor, name: str, size: int, what: str) -> None:
    """Raise for an entry outside ``[0, size)``; on a GPU when the device next synchronises.

    What this very tensor was found to hold is not read again until somebody writes to it: layers of
    a model share an index, and reading it takes five launches.
    """
    found = torch_private.writes(index), size
    if found[0] is not None and getattr(index, _IN_RANGE, None) == found:
        return
    message = f"{name}: every entry must lie in [0, {what})"
    torch_private.assert_async(((index >= 0) & (index < size)).all(), message)
    if found[0] is not None:
        setattr(index, _IN_RANGE, found)


def check_range(edge_dst: torch.Tensor, edge_src: torch.Tensor, num_nodes: int) -> None:
    """:func:`assert_in_range` for both ends of the edges."""
    for name, index in (("edge_dst", edge_dst), ("edge_src", edge_src)):
        assert_in_range(index, name, num_nodes, "x.size(0)")


def check_edges(edge_dst: torch.Tensor, edge_src: torch.Tensor, nodes: torch.Tensor, name: str):
    """Raise ValueError or TypeError unless the two are indices of as many edges, on the device of
    ``nodes``, the argument ``name``."""
    for which, index in (("edge_dst", edge_dst), ("edge_src", edge_src)):
        if index.dim() != 1:
            raise ValueError(f"{which}: expected shape [E], got {tuple(index.shape)}")
        if index.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{which}: expected int32 or int64, got {index.dtype}")
        if index.device != nodes.device:
            raise ValueError(
                f"{which}: expected device {nodes.device} as {name} has, got {index.device}"
            )
    edges = edge_dst.shape[0]
    if edge_src.shape[0] != edges:
        raise ValueError(
            f"edge_src: expected E = {edges} rows as in edge_dst, got {edge_src.shape[0]}"
        )
    if edge_dst.dtype != edge_src.dtype:
        raise TypeError(
            f"edge_src: expected {edge_dst.dtype} as edge_dst has, got {edge_src.dtype}"
        )


def check_order(order: torch.Tensor, num_nodes: int, num_edges: int, device: torch.device) -> None:
    """Raise unless ``order`` can be that of as many nodes and edges, for a Triton kernel.

    Its numbers are not read where :func:`edge_order` made this very tensor and nobody has written
    to it since: a model's layers share one, and reading it costs more than it takes to launch one
    of their kernels.

    Raises:
        ValueError: another shape, dtype or device.
        RuntimeError: a number out of range, an edge that is missing, nodes in an order of their own
            (on a GPU when it next synchronises).
    """
    size = EdgeOrder.size(num_nodes, num_edges)
    if order.shape != (size,) or order.dtype != torch.int64 or order.device != device:
        raise ValueError(
            f"order: expected int64 of shape [{size}] on {device}, the edge_order of {num_nodes} "
            f"nodes and {num_edges} edges, got {order.dtype} of shape {tuple(order.shape)} on "
            f"{order.device}"
        )
    writes = torch_private.writes(order)
    if writes is not None and getattr(order, _MADE, None) == writes:
        return
    parts = EdgeOrder(order, num_nodes, num_edges)
    good = []
    for pointers in (parts.dst_ptr, parts.src_ptr):
        good += [pointers[:1] == 0, pointers[-1:] == num_edges, pointers.diff() >= 0]
    for index, end in (
        (parts.dst_edge, num_edges), (parts.dst_src, num_nodes),
        (parts.src_edge, num_edges), (parts.src_dst, num_nodes), (parts.node, num_nodes),
    ):  # fmt: skip
        good.append((index >= 0) & (index < end))
    for edges in (parts.dst_edge, parts.src_edge):  # each once
        seen = torch.zeros_like(edges, dtype=torch.bool)
        good.append(seen.index_fill(0, edges.clamp(0, num_edges - 1), True))
    torch_private.assert_async(torch.cat(good).all(), "order: not the edge_order of these edges")
    nodes = torch.arange(num_nodes, device=device)
    torch_private.assert_async(
        ((parts.node == nodes) & (parts.place == nodes)).all(),
        "order: expected nodes from 0 to N - 1, which GPU kernels walk in this order; got one that "
        "was made on a CPU with positions",
    )


def edge_order(
    edge_dst: torch.Tensor,
    edge_src: torch.Tensor,
    num_nodes: int,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """``[4 N + 4 E + 2]`` int64 table of this page, from int32 or int64 ``[E]`` indices.

    Args:
        edge_dst: receivers ``[E]``.
        edge_src: senders ``[E]``.
        num_nodes: N.
        positions: ``[N, 3]`` of one structure, in any unit, where nodes are to be walked in an
            order near in space (those of a batch lie in one place, its own order is better).

    Raises:
        ValueError: positions of another shape.
        RuntimeError: an index outside ``[0, num_nodes)``, named with its position (on a GPU
            without the position, when the device next synchronises).
    """
    if positions is not None and (positions.dim() != 2 or positions.shape != (num_nodes, 3)):
        raise ValueError(
            f"positions: expected shape [N, 3] with N = {num_nodes}, got {tuple(positions.shape)}"
        )
    if backend.choose(edge_dst) == "cpp":
        if positions is not None:
            positions = positions.detach().double()
        return torch.ops.fastmlip.edge_order_cpu(edge_dst, edge_src, num_nodes, positions)
    check_range(edge_dst, edge_src, num_nodes)
    order = reference(edge_dst, edge_src, num_nodes)
    if (writes := torch_private.writes(order)) is not None:
        setattr(order, _MADE, writes)
    return order


if backend.load_extension() is None:
    register_vmap(torch.ops.fastmlip.edge_order_cpu.default)

    @torch.library.register_fake("fastmlip::edge_order_cpu")
    def _(edge_dst, edge_src, num_nodes, positions=None):
        size = EdgeOrder.size(num_nodes, edge_dst.shape[0])
        return edge_dst.new_empty((size,), dtype=torch.int64)

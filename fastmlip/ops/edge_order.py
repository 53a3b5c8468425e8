"""Edges in receiver order and in sender order, as one int64 tensor.

``order = [dst_ptr | src_ptr | dst_edge | dst_src | src_edge | src_dst]``, the first two of N + 1,
the others of E entries.

Edges ``dst_edge[dst_ptr[n] : dst_ptr[n + 1]]`` point to node n and come from the nodes ``dst_src``
of the same range; edges ``src_edge[src_ptr[n] : src_ptr[n + 1]]`` start at node n and point to the
nodes ``src_dst``. Within a node edges keep the order they were given in, so sums over them always
run in the same order. Edges that are already sorted are not sorted again (C++: one linear pass).
"""

from __future__ import annotations

import torch

from fastmlip import backend


class EdgeOrder:
    """Names for the parts of an ``order`` tensor of ``num_nodes`` nodes and ``num_edges`` edges."""

    def __init__(self, order: torch.Tensor, num_nodes: int, num_edges: int) -> None:
        nodes, edges = num_nodes + 1, num_edges
        parts = order.split([nodes, nodes, edges, edges, edges, edges])
        self.dst_ptr, self.src_ptr = parts[:2]
        self.dst_edge, self.dst_src, self.src_edge, self.src_dst = parts[2:]

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
    return torch.cat([*pointers, by_dst, dst_src, by_src, src_dst])


def assert_in_range(index: torch.Tensor, name: str, size: int, what: str) -> None:
    """Raise for an entry outside ``[0, size)``; on a GPU when the device next synchronises."""
    message = f"{name}: every entry must lie in [0, {what})"
    torch._assert_async(((index >= 0) & (index < size)).all(), message)


def check_range(edge_dst: torch.Tensor, edge_src: torch.Tensor, num_nodes: int) -> None:
    """:func:`assert_in_range` for both ends of the edges."""
    for name, index in (("edge_dst", edge_dst), ("edge_src", edge_src)):
        assert_in_range(index, name, num_nodes, "x.size(0)")


def edge_order(edge_dst: torch.Tensor, edge_src: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """``[2 (N + 1) + 4 E]`` int64 table of this page, from int32 or int64 ``[E]`` indices.

    Raises:
        RuntimeError: an index outside ``[0, num_nodes)``, named with its position (on a GPU
            without the position, when the device next synchronises).
    """
    if backend.choose(edge_dst) == "cpp":
        return torch.ops.fastmlip.edge_order_cpu(edge_dst, edge_src, num_nodes)
    check_range(edge_dst, edge_src, num_nodes)
    return reference(edge_dst, edge_src, num_nodes)


if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::edge_order_cpu")
    def _(edge_dst, edge_src, num_nodes):
        size = 2 * (num_nodes + 1) + 4 * edge_dst.shape[0]
        return edge_dst.new_empty((size,), dtype=torch.int64)

"""Every edge and its reverse, as one index: what depends on the distance alone is needed once.

``pair[e]`` is, of edge e and its reverse, the one that comes first in the list, and e itself where
there is no reverse. Edge f is the reverse of e if it runs between the same two nodes the other way,
its vector is exactly the opposite, and its embedding exactly the same (it is not, where the cutoff
depends on the order of the two types). An edge that is the reverse of two others is nobody's.

In a full neighbour list of a periodic structure all edges have a reverse; edges to ghost atoms have
none. An index has no gradient.
"""

from __future__ import annotations

import torch

from fastmlip import backend
from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.ops.ladder import register_vmap

Tensor = torch.Tensor


def edge_pair(edge_vec: Tensor, edge_embedding: Tensor, order: Tensor, num_nodes: int) -> Tensor:
    """``pair [E]`` int64 of this page.

    Args:
        edge_vec: ``[E, 3]``, float32 or float64.
        edge_embedding: ``[E, B]``, float32 or float64.
        order: :func:`fastmlip.ops.edge_order` of the edges.
        num_nodes: N.

    Raises:
        ValueError, RuntimeError: naming the argument, what came and what was expected.
    """
    if edge_vec.dim() != 2 or edge_vec.shape[1] != 3:
        raise ValueError(f"edge_vec: expected shape [E, 3], got {tuple(edge_vec.shape)}")
    if edge_embedding.dim() != 2 or edge_embedding.shape[0] != edge_vec.shape[0]:
        raise ValueError(
            f"edge_embedding: expected shape [E, B] with E = {edge_vec.shape[0]}, "
            f"got {tuple(edge_embedding.shape)}"
        )
    edge_vec, edge_embedding = edge_vec.detach(), edge_embedding.detach()
    if backend.choose(edge_vec) == "cpp":
        return torch.ops.fastmlip.edge_pair_cpu(edge_vec, edge_embedding, order, num_nodes)
    return reference(edge_vec, edge_embedding, order, num_nodes)


def reference(edge_vec: Tensor, edge_embedding: Tensor, order: Tensor, num_nodes: int) -> Tensor:
    """The same by sorting: edges and reversed edges with equal keys lie side by side."""
    edges = edge_vec.shape[0]
    parts = EdgeOrder(order, num_nodes, edges)
    dst, src = parts.edge_dst(), parts.edge_src()
    ends = torch.stack([torch.cat([dst, src]), torch.cat([src, dst])], 1).double()
    both = torch.cat([edge_vec, -edge_vec]).double() + 0.0  # no negative zeros
    key = torch.cat([ends, both, edge_embedding.double().repeat(2, 1)], 1)
    _, label = torch.unique(key, dim=0, return_inverse=True)
    forward, backward = label[:edges], label[edges:]
    index = torch.arange(edges, device=edge_vec.device)
    first = torch.full((2 * edges,), edges, device=edge_vec.device)
    first = first.scatter_reduce(0, forward, index, "amin")
    reverse = first[backward]
    known = reverse.clamp(max=max(edges - 1, 0))
    mutual = (reverse < edges) & (reverse[known] == index) if edges else reverse < edges
    return torch.where(mutual, torch.minimum(index, known), index)


if backend.load_extension() is None:
    register_vmap(torch.ops.fastmlip.edge_pair_cpu.default)

    @torch.library.register_fake("fastmlip::edge_pair_cpu")
    def _(edge_vec, edge_embedding, order, num_nodes):
        return order.new_empty((edge_vec.shape[0],))

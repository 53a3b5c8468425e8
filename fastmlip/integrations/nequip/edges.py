"""What modules of a NequIP model share about its edges: their order, found once, and their vectors.

The host adds the gradients of edge vectors up edge by edge. Compiled, threads do that in any order,
so that forces differ in their last digits from run to run; :func:`fastmlip.ops.edge_vectors` has
one order.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmlip import ops
from fastmlip.integrations.derived import has_kernels
from fastmlip.ops.edge_order import edge_order

SHARED = "_fastmlip_shared"

Data = dict[str, Any]


class Shared:
    """What the layers of one model have in common, in one call of it.

    :mod:`~fastmlip.integrations.nequip.sequential_graph_network` puts a new one into the data at
    the beginning of a model and takes it out at the end. Without it, as where a block is called by
    itself, every layer finds these for itself.

    Attributes:
        type_embed: the module that node attributes are a function of the type by, if they are.
        pairs: whether an edge and its reverse may share the gradient of their radial network.
        order: :func:`fastmlip.ops.edge_order` of the edges.
        pair: :func:`fastmlip.ops.edge_pair` of the edges.
        types: of the atoms, ``[N]`` or more.
        radial: what a :class:`fastmlip.nn.radial_spline.RadialSpline` makes of their lengths.
    """

    def __init__(self, type_embed: Any, pairs: bool) -> None:
        self.type_embed, self.pairs = type_embed, pairs
        self.order: torch.Tensor | None = None
        self.pair: torch.Tensor | None = None
        self.types: torch.Tensor | None = None
        self.radial: tuple[torch.Tensor, torch.Tensor] | None = None


def shared(data: Data) -> Shared:
    """What the layers of the model share, or what nobody else will see."""
    return data[SHARED] if SHARED in data else Shared(None, pairs=False)


def order(data: Data, num_nodes: int) -> torch.Tensor:
    """:func:`fastmlip.ops.edge_order` of the edges in ``data``."""
    common = shared(data)
    if common.order is None:
        edge_index = data["edge_index"]
        positions = None if "batch" in data else data.get("pos")
        common.order = edge_order(edge_index[0], edge_index[1], num_nodes, positions)
    return common.order


def with_vectors(data: Data) -> Data:
    """``data`` with ``edge_vectors``, as the host's ``with_edge_vectors_`` computes them."""
    if "edge_vectors" in data:
        return data
    if not has_kernels(data["pos"]):
        from nequip.nn.utils import with_edge_vectors_

        return with_edge_vectors_(data, with_lengths=False)
    pos, edge_index = data["pos"], data["edge_index"]
    of_edges = order(data, pos.shape[0])
    vectors = ops.edge_vectors(pos, edge_index[0], edge_index[1], of_edges)
    if "cell" in data:
        shift, cell = data["edge_cell_shift"], data["cell"]
        if "batch" in data:
            cells = cell.index_select(0, data["batch"].index_select(0, edge_index[0]))
            moved = torch.bmm(shift.view(-1, 1, 3), cells).view(-1, 3)
        else:
            moved = (shift.view(-1, 3, 1) * cell.view(3, 3)).sum(1)
        vectors = vectors + moved
    data["edge_vectors"] = vectors
    return data

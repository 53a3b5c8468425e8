"""What modules of a NequIP model share about its edges: their order, found once, and their vectors.

The host adds the gradients of edge vectors up edge by edge. Compiled, threads do that in any order,
so that forces differ in their last digits from run to run; :func:`fastmlip.ops.edge_vectors` has
one order.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmlip import backend, ops
from fastmlip.ops.edge_order import edge_order

ORDER = "_fastmlip_edge_order"  # from whoever needs it first to the last interaction block

Data = dict[str, Any]


def is_cpp(t: torch.Tensor) -> bool:
    """Whether the C++ operators run on ``t``, in its own dtype."""
    return backend.choose(t) == "cpp" and not torch.is_autocast_enabled(t.device.type)


def order(data: Data, num_nodes: int) -> torch.Tensor:
    """:func:`fastmlip.ops.edge_order` of the edges in ``data``."""
    edge_index = data["edge_index"]
    positions = None if "batch" in data else data.get("pos")
    return edge_order(edge_index[0], edge_index[1], num_nodes, positions)


def with_vectors(data: Data, keep_order: bool) -> Data:
    """``data`` with ``edge_vectors``, as the host's ``with_edge_vectors_`` computes them."""
    if "edge_vectors" in data:
        return data
    if not is_cpp(data["pos"]):
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
    if keep_order:
        data[ORDER] = of_edges
    return data

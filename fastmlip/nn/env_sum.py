"""Module of :mod:`fastmlip.ops.env_sum`, which states the formula."""

from __future__ import annotations

from typing import Any

import torch
from e3nn.o3 import Irreps

from fastmlip import ops


class EnvSum(torch.nn.Module):
    """Weighted tensors of edges, summed per centre.

    Args:
        irreps: irreps of ``edge_attr``, every multiplicity one.

    Raises:
        ValueError: another multiplicity.
    """

    tables: torch.Tensor

    def __init__(self, irreps: Any) -> None:
        super().__init__()
        self.irreps = Irreps(irreps)
        if any(mul != 1 for mul, _ in self.irreps):
            raise ValueError(f"irreps: expected multiplicities of one, got {self.irreps}")
        self.dims = tuple(ir.dim for _, ir in self.irreps)
        self.register_buffer("tables", torch.tensor(self.dims), persistent=False)

    def forward(
        self,
        edge_weight: torch.Tensor,
        edge_attr: torch.Tensor,
        edge_dst: torch.Tensor,
        num_nodes: int,
        order: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The sum, ``[N, irreps.dim, U]``.

        Args:
            edge_weight: ``[E, irreps, U]``, or ``[E, 1, U]``.
            edge_attr: ``[E, irreps.dim]``.
            edge_dst: centres ``[E]``, in any order.
            num_nodes: N.
            order: :func:`fastmlip.ops.edge_order` of the edges, where the caller keeps it.
        """
        return ops.env_sum(
            edge_weight, edge_attr, edge_dst, num_nodes, self.dims, self.tables, order
        )

    def extra_repr(self) -> str:
        return str(self.irreps)

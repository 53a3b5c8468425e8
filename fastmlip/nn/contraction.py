"""Module of :mod:`fastmlip.ops.contraction`, which states the formula."""

from __future__ import annotations

import torch

from fastmlip import ops
from fastmlip.problem import TensorProductProblem


class Contraction(torch.nn.Module):
    """Tensor products of edges with the environment of their centre.

    Args:
        problem: irreps and paths, as :func:`fastmlip.ops.contraction.strided_problem` makes it.
    """

    tables: torch.Tensor

    def __init__(self, problem: TensorProductProblem) -> None:
        super().__init__()
        self.problem = problem
        self.register_buffer("tables", problem.tables(), persistent=False)

    def forward(
        self,
        x: torch.Tensor,
        env: torch.Tensor,
        weight: torch.Tensor,
        edge_dst: torch.Tensor,
        edge_attr: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The product, ``[E, irreps_out.dim, U]``.

        Args:
            x: ``[E, irreps_in1.dim, U]``, or with ``edge_attr`` its weights.
            env: ``[N, irreps_in2.dim, U]``.
            weight: ``[paths, U]``.
            edge_dst: centres ``[E]``, in any order.
            edge_attr: ``[E, irreps_in1.dim]``, where x is given by its factors.
            order: :func:`fastmlip.ops.edge_order` of the edges, where the caller keeps it.
        """
        return ops.contraction(
            x, env, weight, edge_dst, self.problem, edge_attr, self.tables, order
        )

    def extra_repr(self) -> str:
        p = self.problem
        return f"{p.irreps_in1} x {p.irreps_in2} -> {p.irreps_out} | {len(p.instructions)} paths"

"""Module of :mod:`fastmlip.ops.tensor_product_conv`, which states the formula."""

from __future__ import annotations

from typing import Any

import torch

from fastmlip import ops
from fastmlip.problem import TensorProductProblem


class TensorProductConv(torch.nn.Module):
    """Weighted tensor product of node features with edge attributes, summed per receiver.

    Args:
        irreps_in1: irreps of the node features ``x``.
        irreps_in2: irreps of ``edge_attr``; every multiplicity used must be one.
        irreps_out: irreps of the result.
        instructions: e3nn's ``(i_in1, i_in2, i_out, "uvu", True[, path_weight])``.
        irrep_normalization: e3nn's ``component`` (default), ``norm`` or ``none``.
        path_normalization: e3nn's ``element`` (default), ``path`` or ``none``.

    Raises:
        ValueError: an instruction that is not of this kind, by its number.
    """

    tables: torch.Tensor

    def __init__(
        self,
        irreps_in1: Any,
        irreps_in2: Any,
        irreps_out: Any,
        instructions: Any,
        irrep_normalization: str = "component",
        path_normalization: str = "element",
    ) -> None:
        super().__init__()
        self._set_problem(
            TensorProductProblem.from_instructions(
                irreps_in1,
                irreps_in2,
                irreps_out,
                instructions,
                irrep_normalization,
                path_normalization,
            )
        )

    @classmethod
    def from_problem(cls, problem: TensorProductProblem) -> TensorProductConv:
        """The module of a ready problem, e.g. ``TensorProductProblem.from_e3nn(tp)``."""
        module = cls.__new__(cls)
        torch.nn.Module.__init__(module)
        module._set_problem(problem)
        return module

    def _set_problem(self, problem: TensorProductProblem) -> None:
        self.problem = problem
        self.register_buffer("tables", problem.tables(), persistent=False)

    @property
    def weight_numel(self) -> int:
        """Columns of ``edge_weight``."""
        return self.problem.weight_numel

    def forward(
        self,
        x: torch.Tensor,
        edge_attr: torch.Tensor,
        edge_weight: torch.Tensor,
        edge_dst: torch.Tensor,
        edge_src: torch.Tensor,
    ) -> torch.Tensor:
        """The convolution, ``[N, irreps_out.dim]``.

        Args:
            x: node features ``[N, irreps_in1.dim]``.
            edge_attr: ``[E, irreps_in2.dim]``.
            edge_weight: ``[E, weight_numel]``.
            edge_dst: receivers ``[E]``, in any order.
            edge_src: senders ``[E]``.
        """
        return ops.tensor_product_conv(
            x, edge_attr, edge_weight, edge_dst, edge_src, self.problem, self.tables
        )

    def extra_repr(self) -> str:
        p = self.problem
        return (
            f"{p.irreps_in1} x {p.irreps_in2} -> {p.irreps_out} | "
            f"{len(p.instructions)} paths | {p.weight_numel} weights"
        )

"""Module of :mod:`fastmlip.ops.symmetric_contraction`, which states the formula."""

from __future__ import annotations

import torch

from fastmlip import ops
from fastmlip.polynomial import Polynomial


class SymmetricContraction(torch.nn.Module):
    """Polynomials of a node's features, with coefficients of its type.

    Args:
        problem: inputs, outputs and terms.
    """

    tables: torch.Tensor

    def __init__(self, problem: Polynomial) -> None:
        super().__init__()
        self.problem = problem
        self.register_buffer("tables", problem.tables(), persistent=False)

    def forward(
        self, x: torch.Tensor, coefficients: torch.Tensor, types: torch.Tensor
    ) -> torch.Tensor:
        """The polynomials, ``[N, outputs, U]``.

        Args:
            x: ``[N, inputs, U]``.
            coefficients: ``[num_types, terms, U]``.
            types: at least N types; more, as for ghost atoms, are not read.
        """
        return ops.symmetric_contraction(x, coefficients, types, self.problem, self.tables)

    def extra_repr(self) -> str:
        p = self.problem
        return f"{p.inputs} inputs, {p.outputs} outputs, {len(p.terms)} terms"

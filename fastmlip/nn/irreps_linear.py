"""Module of :mod:`fastmlip.ops.irreps_linear`, which states the formula."""

from __future__ import annotations

import torch

from fastmlip import ops
from fastmlip.ops.irreps_linear import LinearProblem


class IrrepsLinear(torch.nn.Module):
    """Linear map of irreps with weights from elsewhere, one set or one for each type.

    Args:
        irreps_in: irreps of ``x``.
        irreps_out: irreps of the result.
        instructions: pairs ``(i_in, i_out)`` of the numbers of two blocks.
        layout_in: of ``x``, ``mul_ir`` or ``ir_mul``, see :mod:`fastmlip.layout`.
        layout_out: of the result.

    Raises:
        ValueError: an instruction between blocks of different irreps, by its number; a layout.
    """

    tables: torch.Tensor

    def __init__(
        self,
        irreps_in: object,
        irreps_out: object,
        instructions: object,
        layout_in: str = "mul_ir",
        layout_out: str = "mul_ir",
    ) -> None:
        super().__init__()
        pairs = tuple((int(i), int(k)) for i, k in instructions)  # type: ignore[attr-defined]
        self.problem = LinearProblem(str(irreps_in), str(irreps_out), pairs, layout_in, layout_out)
        self.register_buffer("tables", self.problem.tables(), persistent=False)

    def forward(
        self, x: torch.Tensor, weight: torch.Tensor, types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``[N, irreps_out.dim]``.

        Args:
            x: ``[N, irreps_in.dim]``.
            weight: ``[num_types, weight_numel]``, of one row where ``types`` is not given.
            types: at least N types.
        """
        return ops.irreps_linear(x, weight, self.problem, types, self.tables)

    def extra_repr(self) -> str:
        p = self.problem
        return f"{p.irreps_in} -> {p.irreps_out} | {p.weight_numel} weights"

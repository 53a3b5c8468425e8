"""Module of :mod:`fastmlip.ops.scalar_mlp`, which states the formula."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from fastmlip import ops


def apply(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    x2: torch.Tensor | None = None,
    split: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """:func:`fastmlip.ops.scalar_mlp` of a matrix ``[inputs, outputs]`` for each layer."""
    flat = [weight.reshape(-1) for weight in weights]
    joined = flat[0] if len(flat) == 1 else torch.cat(flat)
    widths = [weight.shape[0] for weight in weights] + [weights[-1].shape[1]]
    return ops.scalar_mlp(x, joined, widths, x2, split)


class ScalarMLP(torch.nn.Module):
    """Linear layers of scalars with SiLU between them and weights from elsewhere.

    Args:
        widths: columns of the input, of each hidden layer, and of the result.
        split: columns of the first of two results, where there are two.
    """

    def __init__(self, widths: Sequence[int], split: int | None = None) -> None:
        super().__init__()
        self.widths, self.split = tuple(int(width) for width in widths), split

    def forward(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], x2: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """``[rows, widths[-1]]``, or both parts of it.

        Args:
            x: ``[rows, widths[0]]``, or with ``x2`` the first columns.
            weights: the matrix ``[widths[i], widths[i + 1]]`` of each layer i, factors included.
            x2: the other columns.

        Raises:
            ValueError: matrices of other shapes.
        """
        shapes = [tuple(weight.shape) for weight in weights]
        if shapes != list(pairwise(self.widths)):
            raise ValueError(f"weights: expected matrices between {self.widths}, got {shapes}")
        return apply(x, weights, x2, self.split)

    def extra_repr(self) -> str:
        split = "" if self.split is None else f" | split at {self.split}"
        return " -> ".join(str(width) for width in self.widths) + split

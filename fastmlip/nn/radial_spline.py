"""A function of the distance as a table: what a radial network turns into when it is tabulated."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

Tensor = torch.Tensor
DEGREE = 5


class RadialSpline(torch.nn.Module):
    """A quintic B-spline on a uniform grid of [0, 1], zero from 1 on; four times differentiable.

    ``coefficients [intervals + 5, C]`` and, for the grid interval k that a distance x lies in,
    ``values(x) = sum_j B_j(x intervals - k) coefficients[k + j]`` with j = 0 .. 5: the second form
    of :func:`fastmlip.ops.radial_conv`, where ``radial, first_row = spline(x)``.
    """

    coefficients: Tensor
    basis: Tensor

    def __init__(self, coefficients: Tensor) -> None:
        super().__init__()
        self.register_buffer("coefficients", coefficients)
        basis = torch.tensor(_basis(), dtype=torch.float64)
        self.register_buffer("basis", basis, persistent=False)

    @property
    def intervals(self) -> int:
        return self.coefficients.shape[0] - DEGREE

    @classmethod
    def fit(
        cls, function: Callable[[Tensor], Tensor], intervals: int, dtype: torch.dtype
    ) -> RadialSpline:
        """The spline that agrees with ``function`` at the grid points, and in its first and second
        derivative at 0; at 1 both are zero.

        Args:
            function: ``[n]`` distances to ``[n, C]`` values, float64, smooth from just below 0 to
                1, where it is zero with its first two derivatives.
            intervals: of the grid, at least 1.
            dtype: of the coefficients.
        """
        from scipy.interpolate import make_interp_spline

        h = 1e-3  # derivatives at 0 from five points, to the fourth order
        with torch.no_grad():
            values = function(torch.linspace(0, 1, intervals + 1, dtype=torch.float64))
            near = function(torch.arange(-2, 3, dtype=torch.float64) * h)
        first = (near[0] - 8 * near[1] + 8 * near[3] - near[4]) / (12 * h)
        second = (-near[0] + 16 * near[1] - 30 * near[2] + 16 * near[3] - near[4]) / (12 * h * h)
        knots = np.arange(-DEGREE, intervals + DEGREE + 1) / intervals
        at_end = np.zeros_like(first.numpy())
        spline = make_interp_spline(
            np.linspace(0, 1, intervals + 1), values.numpy(), k=DEGREE, t=knots,
            bc_type=([(1, first.numpy()), (2, second.numpy())], [(1, at_end), (2, at_end)]),
        )  # fmt: skip
        return cls(torch.from_numpy(np.ascontiguousarray(spline.c)).to(dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``radial [E, 6]`` and ``first_row [E]`` of the distances ``x [E, 1]``, float64; a row is
        zero where x is 1 or more."""
        place = x.reshape(-1) * self.intervals
        first_row = place.detach().nan_to_num().floor().clamp(0, self.intervals - 1)
        inside = (x < 1).to(x.dtype).reshape(-1, 1)
        powers = [torch.ones_like(place)]
        for _ in range(DEGREE):
            powers.append(powers[-1] * (place - first_row))
        radial = torch.stack(powers, 1) @ self.basis
        return (radial * inside).to(self.coefficients.dtype), first_row.long()

    def extra_repr(self) -> str:
        return f"{self.intervals} intervals, {self.coefficients.shape[1]} values"


@cache
def _basis() -> list[list[float]]:
    """``[power][j]``: the six pieces of the cardinal B-spline of degree 5 (de Boor, A Practical
    Guide to Splines, ch. IX), ``sum_k (-1)^k C(6, k) (f + 5 - j - k)^5 / 120`` over k <= 5 - j."""
    rows = [[0.0] * (DEGREE + 1) for _ in range(DEGREE + 1)]
    for j in range(DEGREE + 1):
        for k in range(DEGREE - j + 1):
            sign = (-1) ** k * math.comb(DEGREE + 1, k)
            for power in range(DEGREE + 1):
                term = math.comb(DEGREE, power) * (DEGREE - j - k) ** (DEGREE - power)
                rows[power][j] += sign * term / math.factorial(DEGREE)
    return rows

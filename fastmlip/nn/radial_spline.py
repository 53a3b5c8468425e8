"""Functions of the distance as a table: what radial networks turn into when they are tabulated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fastmlip.ops import _spline
from fastmlip.ops._spline import DEGREE

Tensor = torch.Tensor


def _derivatives(function: Callable[[Tensor], Tensor], at: float) -> list[tuple[int, np.ndarray]]:
    """The first and the second, from five points, to the fourth order, as scipy takes them."""
    h = 1e-3
    near = function(at + torch.arange(-2, 3, dtype=torch.float64) * h).numpy()
    first = (near[0] - 8 * near[1] + 8 * near[3] - near[4]) / (12 * h)
    second = (-near[0] + 16 * near[1] - 30 * near[2] + 16 * near[3] - near[4]) / (12 * h * h)
    return [(1, first), (2, second)]


class RadialSpline(torch.nn.Module):
    """Quintic B-splines on a uniform grid of [0, 1], zero from 1 on; four times differentiable.

    Made of ``coefficients [intervals + 5, C]``, or of those of several kinds of edges, such as
    pairs of types, ``[kinds, intervals + 5, C]``. ``table`` holds them and six rows of zeros, as
    :mod:`fastmlip.ops._spline` says: the second form of :func:`fastmlip.ops.radial_conv`, and
    :func:`fastmlip.ops.spline`, take ``place, first_row = spline(x)`` and the table.
    """

    table: Tensor

    def __init__(self, coefficients: Tensor) -> None:
        super().__init__()
        *kinds, rows, self.columns = coefficients.shape
        self.kinds = kinds[0] if kinds else 1
        self.intervals = rows - DEGREE
        zeros = coefficients.new_zeros(DEGREE + 1, self.columns)
        table = _spline.table(torch.cat([coefficients.reshape(-1, self.columns), zeros]))
        self.register_buffer("table", table, persistent=False)  # it is made of a network's weights

    @staticmethod
    def fit(function: Callable[[Tensor], Tensor], intervals: int, to_zero: bool = True) -> Tensor:
        """The coefficients ``[intervals + 5, C]``, float64, of the spline that agrees with
        ``function`` at the grid points, and in its first and second derivative at both ends.

        Args:
            function: ``[n]`` distances to ``[n, C]`` values, float64, smooth from just below 0 to
                1, or beyond where ``to_zero`` is not set.
            intervals: of the grid, at least 1.
            to_zero: both derivatives are zero at 1.
        """
        from scipy.interpolate import make_interp_spline

        with torch.no_grad():
            values = function(torch.linspace(0, 1, intervals + 1, dtype=torch.float64))
            at_start = _derivatives(function, 0.0)
            if to_zero:
                at_end = [(order, np.zeros_like(value)) for order, value in at_start]
            else:
                at_end = _derivatives(function, 1.0)
        knots = np.arange(-DEGREE, intervals + DEGREE + 1) / intervals
        spline = make_interp_spline(
            np.linspace(0, 1, intervals + 1), values.numpy(), k=DEGREE, t=knots,
            bc_type=(at_start, at_end),
        )  # fmt: skip
        return torch.from_numpy(np.ascontiguousarray(spline.c))

    def forward(self, x: Tensor, kind: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``place [E, 1]`` in an interval, and ``first_row [E]``, that of the zeros where the
        distance ``x [E, 1]``, float64, is 1 or more, and -1, which is no row, where ``kind [E]``
        is."""
        scaled = x.reshape(-1) * self.intervals
        at = scaled.detach()
        outside = at >= self.intervals
        interval = torch.where(at < self.intervals, at, 0.0).floor().clamp(min=0)  # 0 of NaN
        place = torch.where(outside, 0.0, scaled - interval)
        first_row, rows = interval.long(), self.intervals + DEGREE
        if kind is not None:
            first_row = first_row + kind * rows
        first_row = torch.where(outside, self.kinds * rows, first_row)
        if kind is not None:
            first_row = torch.where(kind < 0, -1, first_row)
        return place.reshape(-1, 1).to(self.table.dtype), first_row

    def coefficients(self, kind: int = 0) -> Tensor:
        """Those of one kind, ``[intervals + 5, C]``, float64, on the CPU."""
        rows = self.intervals + DEGREE
        part = self.table[:, kind * rows : (kind + 1) * rows]
        return part.transpose(0, 1).flatten(1)[:, : self.columns].double().cpu()

    @staticmethod
    def error(coefficients: Tensor, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """The largest difference of a spline from its ``function``, between the grid points too: of
        the values as a part of the largest value, and of the slopes as a part of the largest
        slope."""
        intervals, table = coefficients.shape[0] - DEGREE, _spline.table(coefficients)
        points = torch.linspace(0, 1, 8 * intervals + 1, dtype=torch.float64)[:-1]
        h = 1e-4  # slopes from five points, to the fourth order
        errors, sizes = [0.0, 0.0], [0.0, 0.0]
        for x in points.split(1024):
            with torch.no_grad():
                far, near = (function(x + k * h) - function(x - k * h) for k in (2, 1))
                want = function(x), (8 * near - far) / (12 * h)
            place, first_row = x * intervals, (x * intervals).floor()
            place = (place - first_row).unsqueeze(1)
            for d, exact in enumerate(want):
                basis = _spline.basis(place, d) * intervals**d
                found = _spline.combine(basis, table, first_row.long(), exact.shape[1])
                errors[d] = max(errors[d], (found - exact).abs().max().item())
                sizes[d] = max(sizes[d], exact.abs().max().item())
        return errors[0] / (sizes[0] or 1.0), errors[1] / (sizes[1] or 1.0)

    def extra_repr(self) -> str:
        return f"{self.intervals} intervals" + (f", {self.kinds} kinds" if self.kinds > 1 else "")

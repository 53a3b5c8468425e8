"""Sums over a stream of batches that keep their digits: moments, and a least-squares problem.

Everything here is float64 on the CPU and needs torch only. Two accumulators of the same kind can be
merged, so parts of a data set may be read by different workers.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor
MACHINE_EPSILON = torch.finfo(torch.float64).eps


def sum_by(segment: Tensor, size: int, values: Tensor | None = None) -> Tensor:
    """Sums of ``values`` ``[n]`` (or, without them, counts) for each of ``size`` segments."""
    total = torch.bincount(segment, weights=values, minlength=size)
    return total.double()


class RunningMoments:
    """Count, mean and sum of squared deviations of ``size`` series, ``[size]`` each.

    A batch gets its own mean first and deviations from that mean second; two batches a, b merge by

        n = n_a + n_b,  d = mean_b - mean_a
        mean = mean_a + d n_b / n
        m2 = m2_a + m2_b + d^2 n_a n_b / n

    (B. P. Welford 1962; T. F. Chan, G. H. Golub, R. J. LeVeque 1983). All of it is done on
    differences from the first mean of each series, which are exact where values are close to each
    other, so that a large mean costs the variance no digits.
    """

    def __init__(self, size: int = 1) -> None:
        self.count = torch.zeros(size, dtype=torch.float64)
        self.origin = torch.zeros(size, dtype=torch.float64)
        self.offset = torch.zeros(size, dtype=torch.float64)
        self.m2 = torch.zeros(size, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """Mean of each series; 0 where it has no values."""
        return self.origin + self.offset

    def update(self, values: Tensor, segment: Tensor | None = None) -> None:
        """Add ``values`` ``[n]``, each to the series ``segment[n]`` (all to one if not given)."""
        if segment is None:
            segment = torch.zeros(len(values), dtype=torch.int64)
        size = len(self.count)
        count = sum_by(segment, size)
        some = count.clamp(min=1)
        origin = self.origin.where(self.count > 0, sum_by(segment, size, values) / some)
        values = values - origin[segment]
        mean = sum_by(segment, size, values) / some
        m2 = sum_by(segment, size, (values - mean[segment]).square())
        self.merge_parts(count, origin, mean, m2)

    def merge_parts(self, count: Tensor, origin: Tensor, offset: Tensor, m2: Tensor) -> None:
        """Add batches with means ``origin + offset``; all ``[size]``."""
        self.origin = self.origin.where(self.count > 0, origin)
        total = self.count + count
        share = count / total.clamp(min=1)
        # where a side has no values, its mean must not matter
        delta = ((origin - self.origin) + (offset - self.offset)).where(count > 0, 0.0)
        self.m2 += m2 + delta.square() * self.count * share
        self.offset += delta * share
        self.count = total

    def merge(self, other: RunningMoments) -> None:
        """Add all that ``other`` has seen."""
        self.merge_parts(other.count, other.origin, other.offset, other.m2)

    def means(self) -> Tensor:
        """Mean of each series; NaN where it has no values."""
        return self.mean.where(self.count > 0, torch.nan)

    def std(self) -> Tensor:
        """Standard deviation with n - 1 in the denominator; NaN for fewer than two values."""
        return (self.m2 / (self.count - 1)).sqrt().where(self.count > 1, torch.nan)


class RunningLeastSquares:
    """Minimises ``|A x - b|`` over rows that arrive in batches, without keeping them.

    Only the triangular factor R of ``[A | b] = Q R`` is kept: that of the rows seen so far, with
    new rows under it, has the same R^T R as all rows together. Unlike normal equations this does
    not square the condition number.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = 0
        self._factor = torch.zeros(0, columns + 1, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add rows ``a`` ``[n, columns]`` with right-hand sides ``b`` ``[n]``."""
        self.rows += len(b)
        self._waiting.append(torch.cat([a, b[:, None]], dim=1))
        if sum(len(rows) for rows in self._waiting) > 4 * (self.columns + 1) + 256:
            self._compress()

    def merge(self, other: RunningLeastSquares) -> None:
        """Add all that ``other`` has seen."""
        self.rows += other.rows
        self._waiting += [other._factor, *other._waiting]
        self._compress()

    def _compress(self) -> None:
        stacked = torch.cat([self._factor, *self._waiting])
        self._factor = torch.linalg.qr(stacked, mode="r").R
        self._waiting = []

    def solve(self) -> tuple[Tensor, Tensor]:
        """``x`` ``[columns]`` of least norm, and the projector on what the data leave open.

        The projector ``[columns, columns]`` is zero where the columns are linearly independent.
        """
        self._compress()
        a, b = self._factor[:, :-1], self._factor[:, -1]
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
        kept = s > max(self.rows, self.columns) * MACHINE_EPSILON * s.max() if len(s) else s > 0
        u, s, vh = u[:, kept], s[kept], vh[kept]
        eye = torch.eye(self.columns, dtype=torch.float64)
        return vh.T @ ((u.T @ b) / s), eye - vh.T @ vh

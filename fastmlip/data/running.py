"""Sums over a stream of batches that keep their digits: moments, and a least-squares problem.

Everything here is float64 on the CPU and needs torch only. Two accumulators of the same kind can be
merged, so parts of a data set may be read by different workers.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor
MOST_ROWS = 4096  # rows of a least-squares problem that wait for the next factorisation
MACHINE_EPSILON = torch.finfo(torch.float64).eps


def sum_by(segment: Tensor, size: int, values: Tensor | None = None) -> Tensor:
    """Sums of ``values`` ``[n]`` (or, without them, counts) for each of ``size`` segments."""
    return torch.bincount(segment, weights=values, minlength=size).double()


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
            count = torch.tensor([float(len(values))], dtype=torch.float64)
        else:
            count = sum_by(segment, len(self.count))
        some = count.clamp(min=1)
        origin = self.origin.where(self.count > 0, self._sum(values, segment) / some)
        values = values - (origin if segment is None else origin[segment])
        mean = self._sum(values, segment) / some
        deviation = values - (mean if segment is None else mean[segment])
        m2 = self._sum(deviation.square(), segment)
        self.merge_parts(count, origin, mean, m2)

    def _sum(self, values: Tensor, segment: Tensor | None) -> Tensor:
        if segment is None:
            return values.sum().reshape(1)
        return sum_by(segment, len(self.count), values)

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
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._num_waiting = 0
        self._solved: tuple[Tensor, Tensor] | None = None

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add rows ``a`` ``[n, columns]`` with right-hand sides ``b`` ``[n]``."""
        self.rows += len(b)
        self._wait(a, b)

    def merge(self, other: RunningLeastSquares) -> None:
        """Add all that ``other`` has seen."""
        other._compress()
        self.rows += other.rows
        self._wait(other._factor[:, :-1], other._factor[:, -1])

    def _wait(self, a: Tensor, b: Tensor) -> None:
        self._solved = None
        self._waiting.append((a, b))
        self._num_waiting += len(b)
        if self._num_waiting > MOST_ROWS + 4 * self.columns:
            self._compress()

    def _compress(self) -> None:
        if self._waiting:
            rows = torch.cat([a for a, _ in self._waiting])
            ends = torch.cat([b for _, b in self._waiting])
            stacked = torch.cat([self._factor, torch.cat([rows, ends[:, None]], dim=1)])
            self._factor = torch.linalg.qr(stacked, mode="r").R
        self._waiting, self._num_waiting = [], 0

    def solve(self) -> tuple[Tensor, Tensor]:
        """``x`` ``[columns]`` of least norm, and the projector on what the data leave open.

        The projector ``[columns, columns]`` is zero where the columns are linearly independent.
        """
        if self._solved is None:
            self._compress()
            a, b = self._factor[:, :-1], self._factor[:, -1]
            u, s, vh = torch.linalg.svd(a, full_matrices=False)
            largest = s.max() if len(s) else 0.0
            kept = s > max(self.rows, self.columns) * MACHINE_EPSILON * largest
            u, s, vh = u[:, kept], s[kept], vh[kept]
            eye = torch.eye(self.columns, dtype=torch.float64)
            self._solved = vh.T @ ((u.T @ b) / s), eye - vh.T @ vh
        return self._solved

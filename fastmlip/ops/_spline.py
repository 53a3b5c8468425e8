"""Quintic B-splines on a uniform grid, as :mod:`fastmlip.ops.radial_conv` evaluates them.

At the place f, from 0 to 1, in the interval whose first row of coefficients is k::

    value = sum_j  B_j(f) coefficients[k + j],   j = 0 .. 5

with the six pieces of the cardinal B-spline (de Boor, A Practical Guide to Splines, ch. IX)::

    B_j(f) = sum_k (-1)^k C(6, k) (f + 5 - j - k)^5 / 120  over k <= 5 - j

They add up to one, so the value is also::

    value = coefficients[k] + sum_j  S_j(f) (coefficients[k + j + 1] - coefficients[k + j])
    S_j   = B_(j+1) + .. + B_5,   j = 0 .. 4

whose derivatives, unlike those of the first form, are no small differences of large numbers:
float32 keeps its digits. This file computes the second form, csrc/operators/spline_batch.h the
first, and slopes by the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

Tensor = torch.Tensor
DEGREE = 5
BLOCK = 64  # columns of a block of the table


def _steps() -> list[list[float]]:
    """``[j][power]``: the factors of the powers of f in S_j."""

    def factor(j: int, power: int) -> int:  # of B_j, times 5!
        signs = ((-1) ** k * math.comb(DEGREE + 1, k) for k in range(DEGREE - j + 1))
        terms = (sign * (DEGREE - j - k) ** (DEGREE - power) for k, sign in enumerate(signs))
        return math.comb(DEGREE, power) * sum(terms)

    pieces = range(DEGREE + 1)
    return [
        [
            sum(factor(i, power) for i in pieces[j + 1 :]) / math.factorial(DEGREE)
            for power in pieces
        ]
        for j in range(DEGREE)
    ]


STEPS = _steps()


def basis(place: Tensor, derivative: int = 0) -> Tensor:
    """One and the five S_j ``[E, 6]`` at ``place [E, 1]``, or a derivative of theirs, up to the
    fourth: the factors of :func:`coefficients`."""
    columns = [torch.zeros_like(place) if derivative else torch.ones_like(place)]
    for powers in STEPS:
        for _ in range(derivative):
            powers = [power * factor for power, factor in enumerate(powers)][1:]
        value = torch.full_like(place, powers[-1])
        for factor in reversed(powers[:-1]):
            value = value * place + factor
        columns.append(value)
    return torch.cat(columns, 1)


def num_blocks(columns: int) -> int:
    """Of a table."""
    return max(1, -(-columns // BLOCK))


def table(coefficients: Tensor) -> Tensor:
    """``[rows, C]`` as the kernels read them, a block of columns behind the other,
    ``[num_blocks, rows, 64]``, so that the rows of a block stay in the nearest cache; zero behind
    column C."""
    rows, columns = coefficients.shape
    blocks = num_blocks(columns)
    padded = torch.nn.functional.pad(coefficients, (0, blocks * BLOCK - columns))
    return padded.view(rows, blocks, BLOCK).transpose(0, 1).contiguous()


def coefficients(table: Tensor, first_row: Tensor, columns: int) -> Iterator[Tensor]:
    """The first row of each edge and the differences of its six, ``[E, columns]`` each, one at a
    time: they are large."""
    rows = table.transpose(0, 1).flatten(1)[:, :columns]
    before = rows.index_select(0, first_row)
    yield before
    for j in range(1, DEGREE + 1):
        after = rows.index_select(0, first_row + j)
        yield after - before
        before = after


def combine(basis: Tensor, table: Tensor, first_row: Tensor, columns: int) -> Tensor:
    """``[E, columns]``: the values of each edge, of the factors given."""
    rows = coefficients(table, first_row, columns)
    return sum((basis[:, j : j + 1] * row for j, row in enumerate(rows)), basis.new_zeros(1))

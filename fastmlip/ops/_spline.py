"""Quintic B-splines on a uniform grid, as :mod:`fastmlip.ops.radial_conv` evaluates them.

At the place f, from 0 to 1, in the interval whose first row of coefficients is k::

    value = sum_j  B_j(f) coefficients[k + j],   j = 0 .. 5

with the six pieces of the cardinal B-spline (de Boor, A Practical Guide to Splines, ch. IX)::

    B_j(f) = sum_k (-1)^k C(6, k) (f + 5 - j - k)^5 / 120  over k <= 5 - j
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch

Tensor = torch.Tensor
DEGREE = 5
BLOCK = 64  # columns of a block of the table


@cache
def pieces() -> list[list[float]]:
    """``[j][power]``: the factors of the powers of f in B_j; csrc/spline.h has the same."""

    def factor(j: int, power: int) -> int:
        signs = ((-1) ** k * math.comb(DEGREE + 1, k) for k in range(DEGREE - j + 1))
        terms = (sign * (DEGREE - j - k) ** (DEGREE - power) for k, sign in enumerate(signs))
        return math.comb(DEGREE, power) * sum(terms)

    powers = range(DEGREE + 1)
    return [[factor(j, power) / math.factorial(DEGREE) for power in powers] for j in powers]


def basis(place: Tensor, derivative: int = 0) -> Tensor:
    """The six B_j ``[E, 6]`` at ``place [E, 1]``, or a derivative of theirs, up to the fourth."""
    columns = []
    for powers in pieces():
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
    """The six rows of each edge, ``[E, columns]`` each, one at a time: they are large."""
    rows = table.transpose(0, 1).flatten(1)[:, :columns]
    return (rows.index_select(0, first_row + j) for j in range(DEGREE + 1))


def combine(basis: Tensor, table: Tensor, first_row: Tensor, columns: int) -> Tensor:
    """``[E, columns]``: the values of each edge, of the B_j given."""
    rows = coefficients(table, first_row, columns)
    return sum((basis[:, j : j + 1] * row for j, row in enumerate(rows)), basis.new_zeros(1))

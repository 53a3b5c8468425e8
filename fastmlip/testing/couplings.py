"""MACE's couplings of spherical tensors, from Clebsch-Gordan coefficients, and their polynomials.

The inputs of a channel are one tensor of each l = 0 .. l_max with parity (-1)^l. MACE couples
``degree`` of them, one after the other, to each output of l = 0 .. l_out with parity (-1)^l.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations, product
from math import factorial, prod

import torch

from fastmlip.polynomial import Polynomial, Term
from fastmlip.problem import clebsch_gordan

Tensor = torch.Tensor


def _wigner(l1: int, l2: int, l3: int) -> Tensor:
    values = torch.zeros(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1, dtype=torch.float64)
    for m1, m2, m3, value in clebsch_gordan(l1, l2, l3):
        values[m1, m2, m3] = value
    return values


@cache
def _coupled(l_max: int, degree: int, wanted: int | None) -> list[tuple[int, int, Tensor]]:
    """``(l, parity, [2 l + 1, inputs, ..])`` of each way to couple; those of ``wanted`` alone."""
    inputs = (l_max + 1) ** 2
    if degree == 1:
        each = torch.eye(inputs, dtype=torch.float64)
        ways = [(l1, (-1) ** l1, each[l1**2 : (l1 + 1) ** 2]) for l1 in range(l_max + 1)]
    else:
        ways = []
        lefts = _coupled(l_max, degree - 1, None)
        for (l1, parity, left), l2 in product(lefts, range(l_max + 1)):
            for l3 in range(abs(l1 - l2), l1 + l2 + 1):
                if wanted is not None and (l3, parity * (-1) ** l2) != (wanted, (-1) ** wanted):
                    continue
                w3j = _wigner(l3, l1, l2) * (2 * l3 + 1) ** 0.5
                block = torch.einsum("a...,cab->c...b", left, w3j)
                way = torch.zeros(*block.shape[:-1], inputs, dtype=torch.float64)
                way[..., l2**2 : (l2 + 1) ** 2] = block
                ways.append((l3, parity * (-1) ** l2, way))
    return [way for way in ways if wanted in (None, way[0])]


@cache
def couplings(l_max: int, l_out: int, degree: int) -> Tensor:
    """``U [2 l_out + 1, inputs, .. (degree times), ways]``, float64, as MACE's ``U_matrix``."""
    return torch.stack([way for *_, way in _coupled(l_max, degree, l_out)], -1)


@cache
def symmetric(l_max: int, l_out: int, degree: int) -> dict[Term, Tensor]:
    """Couplings summed over the orders of a monomial's inputs, ``[ways]``, that are not zero."""
    dense = couplings(l_max, l_out, degree)
    summed = torch.zeros_like(dense)
    for order in permutations(range(1, degree + 1)):
        summed += dense.permute(0, *order, degree + 1)
    found = {}
    for m, *monomial in (summed.abs().amax(-1) > 1e-9).nonzero().tolist():
        if monomial == sorted(monomial):
            equal = prod(factorial(monomial.count(i)) for i in set(monomial))  # orders
            found[m, tuple(monomial)] = summed[m][tuple(monomial)] / equal
    return found


@cache
def polynomial(l_max: int, l_out: int, degree: int) -> Polynomial:
    """All outputs of l = 0 .. l_out, of degrees 1 to ``degree``."""
    terms = [
        (l3**2 + m, monomial)
        for l3 in range(l_out + 1)
        for one in range(1, degree + 1)
        for m, monomial in symmetric(l_max, l3, one)
    ]
    return Polynomial((l_max + 1) ** 2, (l_out + 1) ** 2, tuple(sorted(terms)))

"""Real spherical harmonics in e3nn's order as one sparse table: pure data, no kernels.

Let R_l be the homogeneous polynomials that e3nn's ``component`` normalisation gives on the unit
sphere. Each gradient is linear in the polynomials one degree below::

    d R_i / d u_k = sum_j G[i, j, k] R_j,      i = l^2 + m, j = (l - 1)^2 + m',  k in x, y, z

and Euler's theorem for homogeneous functions turns the same numbers into a recurrence for the
values, ``R_i = 1/l sum_{j, k} G[i, j, k] R_j u_k`` with ``R_0 = 1``. ``G`` is the real Wigner 3j
symbol ``(l, l - 1, 1)`` times a number that makes R_l of the polar axis (y in e3nn) sqrt(2l + 1).
"""

from __future__ import annotations

import math
import struct
from functools import cache
from typing import NamedTuple

import torch

from fastmlip.problem import L_MAX, clebsch_gordan

NORMALIZATIONS = ("component", "integral", "norm")


class Term(NamedTuple):
    """``d R_i / d u_k`` has ``value * R_j``."""

    i: int
    j: int
    k: int
    value: float


@cache
def gradient_terms(l_max: int) -> tuple[Term, ...]:
    """Non-zero ``G`` up to ``l_max``, sorted by ``i``, so that a ``j`` is always made before."""
    terms = []
    for degree in range(1, l_max + 1):
        triples = clebsch_gordan(degree, degree - 1, 1)
        polar = next(c for *at, c in triples if at == [degree, degree - 1, 1])
        scale = degree * math.sqrt((2 * degree + 1) / (2 * degree - 1)) / polar
        terms += [
            Term(degree**2 + m, (degree - 1) ** 2 + j, k, scale * c) for m, j, k, c in triples
        ]
    return tuple(sorted(terms))


def scales(l_max: int, normalization: str) -> list[float]:
    """Per degree, what turns R into the harmonics of a normalisation of e3nn.

    Raises:
        ValueError: ``l_max`` outside -1 .. 11 (-1: no harmonics), or an unknown normalisation.
    """
    if not -1 <= l_max <= L_MAX:
        raise ValueError(f"l_max: expected -1 (no harmonics) to {L_MAX}, got {l_max}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization: expected one of {NORMALIZATIONS}, got {normalization!r}")
    degrees = range(l_max + 1)
    if normalization == "component":
        return [1.0 for _ in degrees]
    if normalization == "integral":
        return [1 / math.sqrt(4 * math.pi) for _ in degrees]
    return [1 / math.sqrt(2 * degree + 1) for degree in degrees]


def tables(l_max: int, normalization: str = "component") -> torch.Tensor:
    """What kernels need, as one int64 tensor, so that ``module.float()`` cannot round it.

    ``l_max + 1`` scales as the bits of a float64, then per term ``(i, j, k, bits of the value)``.
    """
    return torch.tensor(_table(l_max, normalization), dtype=torch.int64)


@cache  # numbers and no tensor: one made while tracing would be fake
def _table(l_max: int, normalization: str) -> tuple[int, ...]:
    def bits(values: list[float]) -> list[int]:
        return list(struct.unpack(f"{len(values)}q", struct.pack(f"{len(values)}d", *values)))

    first = bits(scales(l_max, normalization))
    terms = gradient_terms(l_max)
    rows = zip(terms, bits([term.value for term in terms]), strict=True)
    return (*first, *(n for term, value in rows for n in (term.i, term.j, term.k, value)))

"""Tables of paths (_launches.py) as kernels read them, and what they do with a path of an edge."""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

import triton
import triton.language as tl

# ---------------------------------------------------------------- reading a table (_launches.py)


@triton.constexpr_function
def attr(table, j, field):
    """Of block j of irreps_in2: ``in2_offset``, ``d2``, or its number of ``paths``."""
    return len(table[j][2]) if field == "paths" else table[j][{"in2_offset": 0, "d2": 1}[field]]


@triton.constexpr_function
def path(table, j, p, field):
    fields = {"out_offset": 0, "d3": 1, "weight_offset": 2, "adds": 3, "number": 4, "terms": 5}
    return table[j][2][p][fields[field]]


@triton.constexpr_function
def _count(terms, row, column):
    return len(terms[row][column])


@triton.constexpr_function
def _index(terms, row, column, t):
    return terms[row][column][t][0]


@triton.constexpr_function
def _value(terms, row, column, t):
    return terms[row][column][t][1]


@triton.constexpr_function
def length(table):
    return len(table)


# ---------------------------------------------------------------- one path of one edge


@triton.jit
def load_attr(at, n: tl.constexpr):
    """``n`` components of one edge's edge_attr, the same for every channel."""
    values = ()
    for m in tl.static_range(n):
        values = values + (tl.load(at + m),)
    return values


@triton.jit
def receive(sums, v, a, terms: tl.constexpr, d1: tl.constexpr, d3: tl.constexpr):
    """``sums[m3] + sum_m1 M[m1, m3] v[m1]``; terms[m3][m1] contract m2."""
    new_sums = ()
    for m3 in tl.static_range(d3):
        total = sums[m3]
        for m1 in tl.static_range(d1):
            if _count(terms, m3, m1) > 0:
                m = a[_index(terms, m3, m1, 0)] * _value(terms, m3, m1, 0)
                for t in tl.static_range(1, _count(terms, m3, m1)):
                    m += a[_index(terms, m3, m1, t)] * _value(terms, m3, m1, t)
                total += m * v[m1]
        new_sums = new_sums + (total,)
    return new_sums


@triton.jit
def send(da, v, g, a, ha, terms: tl.constexpr, d1: tl.constexpr, d2: tl.constexpr):
    """``y[m1]``, ``y'[m1]`` and ``da[m2] + sum_m1 v[m1] z[m1, m2]``; terms[m1][m2] contract m3."""
    y, y2 = (), ()
    for m1 in tl.static_range(d1):
        total, total2 = tl.zeros_like(g[0]), tl.zeros_like(g[0])
        new_da = ()
        for m2 in tl.static_range(d2):
            if _count(terms, m1, m2) > 0:
                z = g[_index(terms, m1, m2, 0)] * _value(terms, m1, m2, 0)
                for t in tl.static_range(1, _count(terms, m1, m2)):
                    z += g[_index(terms, m1, m2, t)] * _value(terms, m1, m2, t)
                total += a[m2] * z
                if ha is not None:
                    total2 += ha[m2] * z
                new_da = new_da + (da[m2] + v[m1] * z,)
            else:
                new_da = new_da + (da[m2],)
        y, y2, da = y + (total,), y2 + (total2,), new_da
    return y, y2, da

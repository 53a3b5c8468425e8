"""GPU kernel of edge_embedding; fastmlip/ops/edge_embedding.py states the formula.

One thread is one edge. The same kernel is forward, backward and double backward: its numbers are
``(value,)``, or where a direction h is given ``(value, derivative along h)``, and it writes the
last part of them to what it is given places for. Sums over edges (of d_roots) are made per program,
then over programs by torch: no atomics, the same bits in every run. All in float64.

One launch computes everything but harmonics of high degrees. Those have launches of their own,
which make the lower harmonics again, because the time to compile a kernel grows with the third
power of its length, and registers run out.
"""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
import triton
import triton.language as tl

from fastmlip.spherical_harmonics import gradient_terms

from ._launches import Table
from ._run import kernel, run

Tensor = torch.Tensor
DEGREES = 4  # of the first launch, from 0 on; the others have half as many
BLOCK = 32  # edges of a program: sums of a warp need shuffles only, and nothing spills

# ---------------------------------------------------------------- reading the table


@triton.constexpr_function
def _count(table, i):
    return len(table[i])


@triton.constexpr_function
def _term(table, i, t, field):
    return table[i][t][{"j": 0, "k": 1, "value": 2}[field]]


@triton.constexpr_function
def _degree(i):
    import math  # where it is used: Inductor writes this function again, without the module's names

    return math.isqrt(i)


@triton.constexpr_function
def _series(kind, k):
    """Coefficients of sin(z)/z, of its slope / z, and of cos z, in powers of z^2."""
    import math

    if kind == "sinc":
        return (-1) ** k / math.factorial(2 * k + 1)
    if kind == "slope":
        return (-1) ** (k + 1) * 2 * (k + 1) / math.factorial(2 * k + 3)
    return (-1) ** k / math.factorial(2 * k)


# ---------------------------------------------------------------- numbers


@triton.jit
def _plus(x, y):
    return (x[0] + y[0],) if len(x) == 1 else (x[0] + y[0], x[1] + y[1])


@triton.jit
def _times(x, y):
    return (x[0] * y[0],) if len(x) == 1 else (x[0] * y[0], x[0] * y[1] + x[1] * y[0])


@triton.jit
def _scaled(x, by):
    return (x[0] * by,) if len(x) == 1 else (x[0] * by, x[1] * by)


@triton.jit
def _shifted(x, by):
    return (x[0] + by,) if len(x) == 1 else (x[0] + by, x[1])


@triton.jit
def _where(mask, x, y):
    value = tl.where(mask, x[0], y[0])
    return (value,) if len(x) == 1 else (value, tl.where(mask, x[1], y[1]))


@triton.jit
def _last(x):
    return x[len(x) - 1]


@triton.jit
def _reciprocal(x):
    """1 / x, and 0 with derivative 0 where x is 0."""
    inverse = tl.where(x[0] == 0, 0.0, 1 / tl.where(x[0] == 0, 1.0, x[0]))
    return (inverse,) if len(x) == 1 else (inverse, -inverse * inverse * x[1])


@triton.jit
def _sqrt(x):
    root = tl.sqrt(x[0])
    return (root,) if len(x) == 1 else (root, 0.5 * _reciprocal((root,))[0] * x[1])


@triton.jit
def _polynomial(kind: tl.constexpr, q, n: tl.constexpr):
    total = _scaled(q, _series(kind, n - 1))
    for k in tl.static_range(n - 2, 0, -1):
        total = _times(_shifted(total, _series(kind, k)), q)
    return _shifted(total, _series(kind, 0))


@triton.jit
def _sincospi(x):
    nearest = tl.floor(x[0] + 0.5)
    sign = 1.0 - 2.0 * (nearest - 2.0 * tl.floor(nearest * 0.5))
    z = (x[0] - nearest) * 3.141592653589793
    q = (z * z,)
    sine = _polynomial("sinc", q, 11)[0] * z * sign
    cosine = _polynomial("cos", q, 12)[0] * sign
    if len(x) == 1:
        return (sine,), (cosine,)
    else:
        slope = x[1] * 3.141592653589793
        return (sine, cosine * slope), (cosine, -sine * slope)


@triton.jit
def _bessel(x, per_x, w):
    """w sinc(w x), its derivative along x, and along w."""
    t = _times(w, x)
    sine, cosine = _sincospi(t)
    z = _scaled(t, 3.141592653589793)
    q = _times(z, z)
    small = tl.abs(z[0]) < 0.5
    series = _times(w, _polynomial("sinc", q, 7))
    b = _where(small, series, _scaled(_times(sine, per_x), 0.3183098861837907))
    slope = _scaled(_times(_times(w, w), z), 3.141592653589793)
    slope = _times(slope, _polynomial("slope", q, 7))
    dx = _times(_plus(_times(w, cosine), _scaled(b, -1.0)), per_x)
    return b, _where(small, slope, dx), cosine


@triton.jit
def _cutoff(x, P: tl.constexpr):
    """The cutoff and its slope."""
    below = x
    for _ in tl.static_range(P - 2):
        below = _times(below, x)
    value = _shifted(_scaled(x, P * (P + 1) / 2), -P * (P + 2.0))
    value = _shifted(_times(value, x), (P + 1) * (P + 2) / 2)
    value = _shifted(_scaled(_times(_times(below, x), value), -1.0), 1.0)
    rest = _shifted(_scaled(x, -1.0), 1.0)
    slope = _scaled(_times(_times(below, rest), rest), -P * (P + 1) * (P + 2) / 2)
    none = _scaled(x, 0.0)
    return _where(x[0] >= 1, none, value), _where(x[0] >= 1, none, slope)


@triton.jit
def _load3(vec, h_vec, at, mask):
    values = ()
    for k in tl.static_range(3):
        if h_vec is None:
            values = values + ((tl.load(vec + at + k, mask=mask, other=0.0),),)
        else:
            h = tl.load(h_vec + at + k, mask=mask, other=0.0)
            values = values + ((tl.load(vec + at + k, mask=mask, other=0.0), h),)
    return values


@triton.jit
def _load_gradient(at, offset, mask):
    return tl.load(at + offset, mask=mask, other=0.0).to(tl.float64)


# ---------------------------------------------------------------- kernel


@triton.jit
def _radial(
    embedding, cutoff, d_vec, d_roots, roots, h_roots, g_norm, g_embedding, g_cutoff, x, per_x,
    program, e, mask, ROOTS: tl.constexpr, P: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """Writes what depends on the reduced length x, and returns the gradient along x."""
    cut, cut_slope = _cutoff(x, P)
    if cutoff is not None:
        tl.store(cutoff + e, _last(cut), mask=mask)
    d_x = _scaled(x, 0.0)
    if g_cutoff is not None:
        d_x = _scaled(cut_slope, _load_gradient(g_cutoff, e, mask))
    if g_norm is not None:
        d_x = _shifted(d_x, _load_gradient(g_norm, e, mask))
    for n in tl.static_range(ROOTS):
        w = (tl.load(roots + n),)
        if h_roots is not None:
            w = (tl.load(roots + n), tl.load(h_roots + n))
        b, dx, dw = _bessel(x, per_x, w)
        if embedding is not None:
            value = _last(_times(b, cut)) * FACTOR
            tl.store(embedding + e * ROOTS + n, value, mask=mask)
        if d_vec is not None:
            g = tl.zeros_like(x[0])
            if g_embedding is not None:
                g = _load_gradient(g_embedding, e * ROOTS + n, mask) * FACTOR
            d_x = _plus(d_x, _scaled(_plus(_times(dx, cut), _times(b, cut_slope)), g))
            total = tl.sum(tl.where(mask, _last(_times(dw, cut)) * g, 0.0))
            tl.store(d_roots + program * ROOTS + n, total)
    return d_x


@kernel("edge_type", "edges")
def _edge_embedding_kernel(
    length,  # [E]; None to compute gradients only, and with it the next four
    norm,  # [E]
    attrs,  # [E, DIM]; alone of the five where FIRST > 0
    embedding,  # [E, ROOTS]
    cutoff,  # [E]
    d_vec,  # [E, 3], or None; where FIRST > 0, it is added to
    d_roots,  # [programs, ROOTS], or None
    vec,  # [E, 3]
    h_vec,  # likewise; None: values and gradients, otherwise their derivatives along it
    roots,  # [ROOTS]
    h_roots,
    rmax_recip,  # [1], or [TYPES, TYPES]
    edge_type,  # [2, E], or None
    scales,  # [l_max + 1]
    g_length,  # [E]; gradients that are None count as zero
    g_norm,  # [E]
    g_attrs,  # [E, DIM]
    g_embedding,  # [E, ROOTS]
    g_cutoff,  # [E]
    edges,
    TABLE: tl.constexpr,
    FIRST: tl.constexpr,  # degrees of this launch
    LAST: tl.constexpr,
    DIM: tl.constexpr,
    ROOTS: tl.constexpr,
    TYPES: tl.constexpr,
    P: tl.constexpr,
    FACTOR: tl.constexpr,  # a Python number as an operand would be rounded to float32
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    e = program * BLOCK + tl.arange(0, BLOCK)
    mask = e < edges
    v = _load3(vec, h_vec, e * 3, mask)
    if edge_type is None:
        recip = tl.load(rmax_recip)
    else:
        pair = tl.load(edge_type + e, mask=mask, other=0) * TYPES
        pair += tl.load(edge_type + edges + e, mask=mask, other=0)
        recip = tl.load(rmax_recip + pair, mask=mask, other=1.0)
    square = _plus(_plus(_times(v[0], v[0]), _times(v[1], v[1])), _times(v[2], v[2]))
    r = _sqrt(square)
    per_r = _reciprocal(r)
    x = _scaled(r, recip)
    per_x = _reciprocal(x)
    u = (_times(v[0], per_r), _times(v[1], per_r), _times(v[2], per_r))
    none = _scaled(r, 0.0)
    if length is not None:
        tl.store(length + e, _last(r), mask=mask)
        tl.store(norm + e, _last(x), mask=mask)

    a = (none, none, none)  # gradient along u
    harmonics = (_shifted(none, 1.0),)
    for i in tl.static_range((LAST + 1) * (LAST + 1)):
        scale = tl.load(scales + _degree(i))
        if i > 0:
            total = none
            if g_attrs is not None and _degree(i) >= FIRST:
                g = _load_gradient(g_attrs, e * DIM + i, mask) * scale
            for t in tl.static_range(_count(TABLE, i)):
                source = _scaled(harmonics[_term(TABLE, i, t, "j")], _term(TABLE, i, t, "value"))
                total = _plus(total, _times(u[_term(TABLE, i, t, "k")], source))
                if g_attrs is not None and _degree(i) >= FIRST:
                    new_a = ()
                    for k in tl.static_range(3):
                        if k == _term(TABLE, i, t, "k"):
                            new_a = new_a + (_plus(a[k], _scaled(source, g)),)
                        else:
                            new_a = new_a + (a[k],)
                    a = new_a
            harmonics = harmonics + (_scaled(total, 1.0 / _degree(i)),)
        if attrs is not None and _degree(i) >= FIRST:
            tl.store(attrs + e * DIM + i, _last(harmonics[i]) * scale, mask=mask)

    if FIRST == 0:
        d_x = _radial(
            embedding, cutoff, d_vec, d_roots, roots, h_roots, g_norm, g_embedding, g_cutoff, x,
            per_x, program, e, mask, ROOTS, P, FACTOR,
        )  # fmt: skip
        d_r = _scaled(d_x, recip)
        if g_length is not None:
            d_r = _shifted(d_r, _load_gradient(g_length, e, mask))
    if d_vec is not None:
        along = _plus(_plus(_times(u[0], a[0]), _times(u[1], a[1])), _times(u[2], a[2]))
        for k in tl.static_range(3):
            across = _plus(a[k], _scaled(_times(along, u[k]), -1.0))
            total = _times(across, per_r)
            if FIRST == 0:
                tl.store(d_vec + e * 3 + k, _last(_plus(total, _times(d_r, u[k]))), mask=mask)
            else:
                earlier = tl.load(d_vec + e * 3 + k, mask=mask, other=0.0)
                tl.store(d_vec + e * 3 + k, earlier + _last(total), mask=mask)


# ---------------------------------------------------------------- launchers


@cache
def _table(l_max: int) -> Table:
    """Per harmonic its terms ``(j, k, value)``."""
    rows: list[list[tuple]] = [[] for _ in range((l_max + 1) ** 2)]
    for i, j, k, value in gradient_terms(l_max):
        rows[i].append((j, k, value))
    return Table(tuple(row) for row in rows)


def _degrees(l_max: int, second: bool) -> Iterator[tuple[int, int]]:
    """First and last degree of each launch; ``second`` for the second derivatives."""
    if not second:
        yield 0, l_max
        return
    yield 0, min(l_max, DEGREES - 1)
    for first in range(DEGREES, l_max + 1, DEGREES // 2):
        yield first, min(l_max, first + DEGREES // 2 - 1)


def _launch(values, d_vec, d_roots, directions, gradients, operands) -> None:
    vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, _ = operands
    if tables.numel() != l_max + 1 + 4 * sum(map(len, _table(l_max))):
        raise RuntimeError("tables: not a table of this l_max")
    inputs = [
        None if t is None else t.contiguous()
        for t in (
            vec, directions[0], roots, directions[1], rmax_recip, edge_type,
            tables.view(torch.float64), *gradients,
        )
    ]  # fmt: skip
    for first, last in _degrees(l_max, directions[0] is not None):
        if first > 0:  # harmonics alone
            attrs, g_attrs = values[2], inputs[-3]
            if attrs is None and g_attrs is None:
                break
            values, d_roots = (None, None, attrs, None, None), None
            inputs[-5:] = (None, None, g_attrs, None, None)
        run(
            _edge_embedding_kernel, (triton.cdiv(vec.shape[0], BLOCK),),
            *values, d_vec, d_roots, *inputs, vec.shape[0],
            TABLE=_table(last), FIRST=first, LAST=last, DIM=(l_max + 1) ** 2,
            ROOTS=roots.numel(), TYPES=math.isqrt(rmax_recip.numel()), P=p, FACTOR=factor,
            BLOCK=BLOCK, lanes=BLOCK,
        )  # fmt: skip


def _values_like(vec, roots, l_max: int, single: bool) -> tuple[Tensor, ...]:
    dtype = torch.float32 if single else torch.float64
    columns = ((1, vec.dtype), (1, vec.dtype), ((l_max + 1) ** 2, dtype), (roots.numel(), dtype))
    return tuple(vec.new_empty((vec.shape[0], n), dtype=t) for n, t in (*columns, (1, dtype)))


def _gradients_like(vec, roots) -> tuple[Tensor, Tensor]:
    programs = triton.cdiv(vec.shape[0], BLOCK)
    return vec.new_empty((vec.shape[0], 3)), roots.new_empty((programs, roots.numel()))


def forward(*operands) -> tuple[Tensor, ...]:
    """``length, norm, attrs, embedding, cutoff``"""
    vec, roots, *_, l_max, _, _, single = operands
    values = _values_like(vec, roots, l_max, single)
    _launch(values, None, None, (None, None), (None,) * 5, operands)
    return values


def backward(gradients, *operands) -> tuple[Tensor, Tensor]:
    """``d_vec, d_roots``, shaped like vec, roots."""
    vec, roots = operands[:2]
    d_vec, parts = _gradients_like(vec, roots)
    _launch((None,) * 5, d_vec, parts, (None, None), gradients, operands)
    return d_vec, parts.sum(0).reshape(roots.shape)


def double_backward(directions, gradients, *operands) -> tuple[Tensor, ...]:
    """Derivatives along ``directions`` of what forward and backward return."""
    vec, roots, *_, l_max, _, _, single = operands
    values, (d_vec, parts) = _values_like(vec, roots, l_max, single), _gradients_like(vec, roots)
    _launch(values, d_vec, parts, directions, gradients, operands)
    return *values, d_vec, parts.sum(0).reshape(roots.shape)

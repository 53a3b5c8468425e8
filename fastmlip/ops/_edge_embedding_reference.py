"""Plain-PyTorch form of :mod:`fastmlip.ops.edge_embedding`, which states the formulas.

``values`` is the forward pass in torch's own functions. ``_ladder`` is the forward and the backward
written out, for dual numbers of tensors; kernels follow it line by line, and torch differentiates
it for what lies beyond their double backward. Columns are ``[E]`` tensors.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor


def rmax_recip_of(rmax_recip: Tensor, edge_type: Tensor | None) -> Tensor:
    """1 / r_max of each edge, ``[E]``, or of all of them."""
    if edge_type is None:
        return rmax_recip.reshape(())
    types = math.isqrt(rmax_recip.numel())
    return rmax_recip.reshape(-1).index_select(0, edge_type[0] * types + edge_type[1])


def read_tables(tables: Tensor, l_max: int) -> tuple[Tensor, list[tuple[int, int, int, float]]]:
    """Scales of the degrees as ``[l_max + 1]``, and the terms ``(i, j, k, value)``.

    Which terms there are depends on ``l_max`` alone, so that nothing is read while tracing.
    """
    from fastmlip.spherical_harmonics import gradient_terms

    floats = tables.view(torch.float64)
    terms = [(t.i, t.j, t.k, t.value) for t in gradient_terms(l_max)]
    return floats[: l_max + 1], terms


def values(edge_vec, roots, rmax_recip, tables, l_max: int, p: int, factor: float):
    """Forward pass on float64 tensors: length, norm, attrs, embedding, cutoff."""
    square = edge_vec.square().sum(1, keepdim=True)
    zero = square == 0  # such an edge has no direction, and no gradient
    length = torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
    norm = length * rmax_recip.reshape(-1, 1)
    u = torch.where(zero, 0.0, edge_vec / torch.where(zero, 1.0, length)).unbind(1)
    scales, terms = read_tables(tables, l_max)
    harmonics = [torch.ones_like(u[0]) for _ in range(min(l_max + 1, 1))]
    for degree in range(1, l_max + 1):
        new = [torch.zeros_like(u[0]) for _ in range(2 * degree + 1)]
        for i, j, k, value in terms:
            if degree**2 <= i < (degree + 1) ** 2:
                m = i - degree**2
                new[m] = new[m] + value / degree * harmonics[j] * u[k]
        harmonics += new
    columns = [h * scales[math.isqrt(i)] for i, h in enumerate(harmonics)]
    attrs = torch.stack(columns, 1) if columns else edge_vec.new_empty((edge_vec.shape[0], 0))
    embedding, cutoff = radial(norm, roots, p, factor)
    return length, norm, attrs, embedding, cutoff


def radial(norm: Tensor, roots: Tensor, p: int, factor: float) -> tuple[Tensor, Tensor]:
    """Embedding ``[E, B]`` and cutoff ``[E, 1]`` of the normalised lengths ``[E, 1]``."""
    cutoff = (
        1
        - (p + 1) * (p + 2) / 2 * norm**p
        + p * (p + 2) * norm ** (p + 1)
        - p * (p + 1) / 2 * norm ** (p + 2)
    ) * (norm < 1)
    zero = norm == 0
    sinc = torch.where(zero, 1.0, torch.sinc(torch.where(zero, 1.0, norm) * roots))
    return factor * roots * sinc * cutoff, cutoff


# ---------------------------------------------------------------- the ladder


class Dual(NamedTuple):
    """A number and its derivative along one direction."""

    a: Any
    b: Any

    def __add__(self, other: Any) -> Dual:
        c, d = _parts(other)
        return Dual(self.a + c, self.b + d)

    def __sub__(self, other: Any) -> Dual:
        c, d = _parts(other)
        return Dual(self.a - c, self.b - d)

    def __rsub__(self, other: Any) -> Dual:
        return Dual(other - self.a, -self.b)

    def __mul__(self, other: Any) -> Dual:
        c, d = _parts(other)
        return Dual(self.a * c, self.a * d + self.b * c)

    def __radd__(self, other: Any) -> Dual:
        return self + other

    def __rmul__(self, other: Any) -> Dual:
        return self * other


def _parts(number: Any) -> Any:
    return number if isinstance(number, Dual) else (number, 0.0)


def _where(mask: Tensor, x: Any, y: Any) -> Any:
    if isinstance(x, Dual) or isinstance(y, Dual):
        (a, b), (c, d) = _parts(x), _parts(y)
        return Dual(_where(mask, a, c), _where(mask, b, d))
    return torch.where(mask, x, y)


def _sqrt(x: Any) -> Any:
    if not isinstance(x, Dual):
        return x.sqrt()
    root = x.a.sqrt()
    return Dual(root, 0.5 * _reciprocal(root) * x.b)


def _reciprocal(x: Any) -> Any:
    """1 / x, and 0 with derivative 0 where x is 0."""
    if isinstance(x, Dual):
        inverse = _reciprocal(x.a)
        return Dual(inverse, -inverse * inverse * x.b)
    zero = x == 0
    return torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, x))


def _sincospi(x: Any) -> Any:
    if not isinstance(x, Dual):
        return torch.sin(math.pi * x), torch.cos(math.pi * x)
    sine, cosine = _sincospi(x.a)
    return Dual(sine, math.pi * cosine * x.b), Dual(cosine, -math.pi * sine * x.b)


def _power(x: Any, exponent: int) -> Any:
    result = x
    for _ in range(exponent - 1):
        result = result * x
    return result


def bessel(x: Any, per_x: Any, w: Any) -> tuple[Any, Any, Any]:
    """w sinc(w x), its derivative along x, and along w."""
    t = w * x
    sine, cosine = _sincospi(t)
    small = _parts(t)[0].abs() < 0.5 / math.pi
    z = t * math.pi
    q = z * z
    sinc, slope = 1 / math.factorial(13), -14 / math.factorial(15)
    for k in range(5, -1, -1):
        sinc = sinc * q + (-1) ** k / math.factorial(2 * k + 1)
    for k in range(6, 0, -1):
        slope = slope * q + (-1) ** k * 2 * k / math.factorial(2 * k + 1)
    value = _where(small, w * sinc, sine * per_x * (1 / math.pi))
    dx = _where(small, w * w * z * slope * math.pi, (w * cosine - value) * per_x)
    return value, dx, cosine


def _ladder(vec, roots, rmax_recip, gradients, tables, l_max: int, p: int, factor: float):
    """Values of the outputs, as columns, and d_vec, d_roots of ``<gradients, outputs>``.

    ``vec``: three numbers; ``roots``: B numbers; ``gradients``: columns of each output.
    """
    g_length, g_norm, g_attrs, g_embedding, g_cutoff = gradients
    length = _sqrt(vec[0] * vec[0] + vec[1] * vec[1] + vec[2] * vec[2])
    per_length, x = _reciprocal(length), length * rmax_recip
    per_x = _reciprocal(x)
    u = [component * per_length for component in vec]
    zero = torch.zeros_like(_parts(length)[0])

    scales, terms = read_tables(tables, l_max)
    harmonics: list[Any] = [zero + 1.0] + [zero] * ((l_max + 1) ** 2 - 1)
    a: list[Any] = [zero, zero, zero]  # gradient along u
    for i, j, k, value in terms:
        degree = math.isqrt(i)
        harmonics[i] = harmonics[i] + value / degree * (u[k] * harmonics[j])
        a[k] = a[k] + value * (g_attrs[i] * scales[degree]) * harmonics[j]
    attrs = [harmonics[i] * scales[math.isqrt(i)] for i in range((l_max + 1) ** 2)]

    outside = _parts(x)[0] >= 1  # so NaN stays NaN
    below = _power(x, p - 1)
    rest = 1.0 - x
    cutoff = 1.0 - below * x * (x * (x * (p * (p + 1) / 2) - p * (p + 2.0)) + (p + 1) * (p + 2) / 2)
    cutoff = _where(outside, zero, cutoff)
    slope = _where(outside, zero, below * rest * rest * (-p * (p + 1) * (p + 2) / 2))

    d_x = slope * g_cutoff + g_norm
    embedding, d_roots = [], []
    for w, g in zip(roots, g_embedding, strict=True):
        b, dx, dw = bessel(x, per_x, w)
        embedding.append(b * cutoff * factor)
        d_x = d_x + (dx * cutoff + b * slope) * (g * factor)
        d_roots.append(dw * cutoff * (g * factor))
    along = u[0] * a[0] + u[1] * a[1] + u[2] * a[2]
    d_length = d_x * rmax_recip + g_length
    d_vec = [(a[k] - along * u[k]) * per_length + d_length * u[k] for k in range(3)]
    return ([length], [x], attrs, embedding, [cutoff]), d_vec, d_roots


def _columns(edge_vec, roots, gradients, l_max):
    """Gradients as columns in float64; those that are None as zeros."""
    rows = edge_vec.shape[0]
    widths = (1, 1, (l_max + 1) ** 2, roots.numel(), 1)
    wide = [
        edge_vec.new_zeros((rows, n)) if g is None else g.double()
        for g, n in zip(gradients, widths, strict=True)
    ]
    (g_length,), (g_norm,), g_attrs, g_embedding, (g_cutoff,) = (g.unbind(1) for g in wide)
    return g_length, g_norm, g_attrs, g_embedding, g_cutoff


def _stack(columns, like: Tensor) -> Tensor:
    return torch.stack(columns, 1) if columns else like.new_empty((like.shape[0], 0))


def _rounded(outputs, single: bool) -> tuple[Tensor, ...]:
    dtype = torch.float32 if single else torch.float64
    return *outputs[:2], *(value.to(dtype) for value in outputs[2:])


def double_backward(
    directions, gradients, vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, single
):
    """The derivative of the outputs and of the backward along ``directions``."""
    h_vec, h_roots = directions
    outputs, d_vec, d_roots = _ladder(
        [Dual(a, b) for a, b in zip(vec.unbind(1), h_vec.unbind(1), strict=True)],
        [
            Dual(a, b)
            for a, b in zip(roots.reshape(-1).unbind(), h_roots.reshape(-1).unbind(), strict=True)
        ],
        rmax_recip_of(rmax_recip, edge_type),
        _columns(vec, roots, gradients, l_max), tables, l_max, p, factor,
    )  # fmt: skip

    def slopes(columns):
        return _stack([c.b if isinstance(c, Dual) else torch.zeros_like(c) for c in columns], vec)

    stacked = [slopes(columns) for columns in outputs]
    return (
        *_rounded(stacked, single), slopes(d_vec), slopes(d_roots).sum(0).reshape(roots.shape)
    )  # fmt: skip

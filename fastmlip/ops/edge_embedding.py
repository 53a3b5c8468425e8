"""Edge vectors to lengths, spherical harmonics and a radial basis, in one pass.

For an edge vector v with length r = |v|, direction u = v / r and reduced length x = r / r_max::

    length     r
    norm       x
    attrs      Y_lm(u), l = 0 .. l_max: real spherical harmonics, normalised and ordered as e3nn's
    cutoff     c(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), 0 from x = 1 on
    embedding  factor * w_n sinc(w_n x) c(x) = factor * sin(pi w_n x) / (pi x) * c(x)

The cutoff is the polynomial envelope of DimeNet (arXiv:2003.03123), the radial functions are its
Bessel basis with roots w_n = 1, 2, .. that may be trained; r_max may depend on the types of the
two atoms. All is computed in float64; attrs, embedding and cutoff are rounded to the model's dtype
at the end. An edge of length 0 has u = 0, and no gradient through u and r.

With L = <g, outputs>, linear in g, the derivatives are::

    backward         dL/dv, dL/dw
    double backward  derivative of (outputs, dL/dv, dL/dw) along directions (h_v, h_w)
    beyond           torch's autograd through the plain-PyTorch form of the double backward

Kernels write the backward once for numbers of any kind; with dual numbers it is the double
backward. Harmonics and their gradients come from one table, :mod:`fastmlip.spherical_harmonics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastmlip import backend
from fastmlip.backend import FLOATS
from fastmlip.ops import _edge_embedding_reference as plain
from fastmlip.ops.edge_order import assert_in_range
from fastmlip.ops.ladder import Rung, ladder, own
from fastmlip.problem import L_MAX
from fastmlip.spherical_harmonics import tables as make_tables

Tensor = torch.Tensor


class EdgeEmbedding(NamedTuple):
    """Outputs of :func:`edge_embedding`."""

    length: Tensor
    norm: Tensor
    attrs: Tensor
    embedding: Tensor
    cutoff: Tensor


def edge_embedding(
    edge_vec: Tensor,
    roots: Tensor,
    rmax_recip: Tensor,
    edge_type: Tensor | None = None,
    *,
    l_max: int,
    p: int = 6,
    factor: float = 1.0,
    dtype: torch.dtype = torch.float64,
    tables: Tensor | None = None,
) -> EdgeEmbedding:
    """The functions of this page.

    Args:
        edge_vec: ``[E, 3]`` in the unit of length, float32 or float64.
        roots: Bessel roots in units of pi, ``[B]`` or ``[1, B]``, float64; B may be 0.
        rmax_recip: 1 / r_max, float64: one number, or with ``edge_type`` ``[T * T]``, row-major by
            the types of centre and neighbour.
        edge_type: types of centre and neighbour, ``[2, E]`` int64 in ``[0, T)``.
        l_max: highest degree of the harmonics, up to 11; -1 for none.
        p: power of the cutoff, an integer from 2 to 1000.
        factor: number that multiplies ``embedding``.
        dtype: float32 or float64, of ``attrs``, ``embedding`` and ``cutoff``.
        tables: :func:`fastmlip.spherical_harmonics.tables` of ``l_max`` on the device of
            ``edge_vec``, where the caller keeps it; it also says which normalisation.

    Returns:
        ``length`` and ``norm`` ``[E, 1]`` in float64; ``attrs [E, (l_max + 1)^2]``,
        ``embedding [E, B]`` and ``cutoff [E, 1]`` in ``dtype``.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: a type out of range.
    """
    _check(edge_vec, roots, rmax_recip, edge_type, l_max, p, dtype)
    if tables is None:
        tables = make_tables(l_max).to(edge_vec.device)
    if edge_vec.dtype is not torch.float64:
        edge_vec = edge_vec.double()
    which = backend.choose(edge_vec)
    if which != "cpp" and edge_type is not None:  # C++ checks what it takes
        assert_in_range(edge_type, "edge_type", math.isqrt(rmax_recip.numel()), "T")
    if which == "reference":
        return reference(
            edge_vec, roots, rmax_recip, edge_type,
            l_max=l_max, p=p, factor=factor, dtype=dtype, tables=tables,
        )  # fmt: skip
    calls = _CPP if which == "cpp" else _TRITON
    single = dtype == torch.float32
    return EdgeEmbedding(
        *calls["forward"](edge_vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, single)
    )


def _check(edge_vec, roots, rmax_recip, edge_type, l_max, p, dtype) -> None:
    if edge_vec.dim() != 2 or edge_vec.shape[1] != 3:
        raise ValueError(f"edge_vec: expected shape [E, 3], got {tuple(edge_vec.shape)}")
    if edge_vec.dtype not in FLOATS:
        raise TypeError(f"edge_vec: expected float32 or float64, got {edge_vec.dtype}")
    device = edge_vec.device
    for name, value in (("roots", roots), ("rmax_recip", rmax_recip)):
        if value.dtype is not torch.float64:
            raise TypeError(f"{name}: expected float64, got {value.dtype}")
        if value.device != device:
            raise ValueError(
                f"{name}: expected device {device} as edge_vec has, got {value.device}"
            )
    if roots.dim() != 1 and not (roots.dim() == 2 and roots.shape[0] == 1):
        raise ValueError(f"roots: expected shape [B] or [1, B], got {tuple(roots.shape)}")
    if not -1 <= l_max <= L_MAX:
        raise ValueError(f"l_max: expected -1 (no harmonics) to {L_MAX}, got {l_max}")
    if not 2 <= p <= 1000 or p % 1 != 0:  # beyond, the polynomial's terms overflow
        raise ValueError(f"p: expected an integer from 2 to 1000, got {p}")
    if dtype not in FLOATS:
        raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    pairs = rmax_recip.numel()
    if edge_type is None:
        if pairs != 1:
            raise ValueError(f"edge_type: needed, because rmax_recip has {pairs} numbers, not 1")
        return
    if math.isqrt(pairs) ** 2 != pairs:
        raise ValueError(f"rmax_recip: expected T * T numbers for T types, got {pairs}")
    if edge_type.dim() != 2 or edge_type.shape[0] != 2 or edge_type.shape[1] != edge_vec.shape[0]:
        raise ValueError(
            f"edge_type: expected shape [2, {edge_vec.shape[0]}], got {tuple(edge_type.shape)}"
        )
    if edge_type.dtype != torch.int64:
        raise TypeError(f"edge_type: expected int64, got {edge_type.dtype}")
    if edge_type.device != device:
        raise ValueError(
            f"edge_type: expected device {device} as edge_vec has, got {edge_type.device}"
        )


def reference(
    edge_vec: Tensor,
    roots: Tensor,
    rmax_recip: Tensor,
    edge_type: Tensor | None = None,
    *,
    l_max: int,
    p: int = 6,
    factor: float = 1.0,
    dtype: torch.dtype = torch.float64,
    tables: Tensor | None = None,
) -> EdgeEmbedding:
    """The formulas of this page with torch's own functions, differentiable to any order."""
    if tables is None:
        tables = make_tables(l_max)
    recip = plain.rmax_recip_of(rmax_recip, edge_type)
    columns = plain.values(edge_vec.double(), roots.reshape(-1), recip, tables, l_max, p, factor)
    length, norm, attrs, embedding, cutoff = columns
    return EdgeEmbedding(length, norm, attrs.to(dtype), embedding.to(dtype), cutoff.to(dtype))


# ---------------------------------------------------------------- the Triton operators


@backend.triton_op("fastmlip::edge_embedding", mutates_args=())
def _forward(
    edge_vec: Tensor, roots: Tensor, rmax_recip: Tensor, edge_type: Tensor | None,
    tables: Tensor, l_max: int, p: int, factor: float, single: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from fastmlip.kernels import edge_embedding as kernels

    return kernels.forward(edge_vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, single)


@backend.triton_op("fastmlip::edge_embedding_backward", mutates_args=())
def _backward(
    g_length: Tensor | None, g_norm: Tensor | None, g_attrs: Tensor | None,
    g_embedding: Tensor | None, g_cutoff: Tensor | None,
    edge_vec: Tensor, roots: Tensor, rmax_recip: Tensor, edge_type: Tensor | None,
    tables: Tensor, l_max: int, p: int, factor: float, single: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to edge_vec, roots; a gradient that is None counts as zero."""
    from fastmlip.kernels import edge_embedding as kernels

    return kernels.backward(
        (g_length, g_norm, g_attrs, g_embedding, g_cutoff),
        edge_vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, single,
    )  # fmt: skip


@backend.triton_op("fastmlip::edge_embedding_double_backward", mutates_args=())
def _double_backward(
    h_vec: Tensor, h_roots: Tensor,
    g_length: Tensor | None, g_norm: Tensor | None, g_attrs: Tensor | None,
    g_embedding: Tensor | None, g_cutoff: Tensor | None,
    edge_vec: Tensor, roots: Tensor, rmax_recip: Tensor, edge_type: Tensor | None,
    tables: Tensor, l_max: int, p: int, factor: float, single: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to the five gradients, edge_vec, roots."""
    from fastmlip.kernels import edge_embedding as kernels

    return kernels.double_backward(
        (h_vec, h_roots), (g_length, g_norm, g_attrs, g_embedding, g_cutoff),
        edge_vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, single,
    )  # fmt: skip


# ---------------------------------------------------------------- derivatives of both

NOT_TENSORS = 4  # l_max, p, factor, single


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs[:-NOT_TENSORS])
    ctx.rest = inputs[-NOT_TENSORS:]


def _save_forward(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.set_materialize_grads(False)
    _save(ctx, inputs, output)


def _double_backward_vjp(rungs, ctx, *k):
    """torch's autograd, recorded if the caller records, through the plain-PyTorch form."""
    saved, record = ctx.saved_tensors, torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [None if t is None else own(t) for t in saved[:9]]
        outputs = plain.double_backward(inputs[:2], inputs[2:7], *inputs[7:], *saved[9:], *ctx.rest)
        wanted = [t for t in inputs if t is not None]
        pairs = [(o, ki) for o, ki in zip(outputs, k, strict=True) if o.requires_grad]
        grads = iter(
            torch.autograd.grad(
                [o for o, _ in pairs],
                wanted,
                [ki for _, ki in pairs],
                create_graph=record,
                allow_unused=True,
                materialize_grads=True,
            )
        )
    found = [None if t is None else next(grads) for t in inputs]
    return *found, *(None,) * (len(saved) - 9 + NOT_TENSORS)


def _forward_vjp(rungs, ctx, *g):
    d_vec, d_roots = rungs["backward"](*g, *ctx.saved_tensors, *ctx.rest)
    return d_vec, d_roots, None, None, None, *(None,) * NOT_TENSORS


def _backward_vjp(rungs, ctx, h_vec, h_roots):
    saved = ctx.saved_tensors
    *gg, d_vec, d_roots = rungs["double_backward"](h_vec, h_roots, *saved, *ctx.rest)
    gg = [None if g is None else new for g, new in zip(saved[:5], gg, strict=True)]
    return *gg, d_vec, d_roots, None, None, None, *(None,) * NOT_TENSORS


def _ladder(suffix: str) -> dict[str, Callable[..., Any]]:
    def rung(name: str, save: Callable[..., None], vjp: Callable[..., Any]) -> Rung:
        return Rung(getattr(torch.ops.fastmlip, f"edge_embedding{name}{suffix}").default, save, vjp)

    return ladder(
        {
            "forward": rung("", _save_forward, _forward_vjp),
            "backward": rung("_backward", _save, _backward_vjp),
            "double_backward": rung("_double_backward", _save, _double_backward_vjp),
        }
    )


_TRITON = _CPP = _ladder("")

if backend.load_extension() is None:  # shapes of the C++ operators, for tracing
    _CPP = _ladder("_cpu")

    def _values_like(edge_vec, roots, l_max, single):
        dtype = torch.float32 if single else torch.float64
        columns = ((1, None), (1, None), ((l_max + 1) ** 2, dtype), (roots.numel(), dtype))
        return tuple(
            edge_vec.new_empty((edge_vec.shape[0], n), dtype=t) for n, t in (*columns, (1, dtype))
        )

    def _operands_like(edge_vec, roots):
        return tuple(
            torch.empty_like(t, memory_format=torch.contiguous_format) for t in (edge_vec, roots)
        )

    @torch.library.register_fake("fastmlip::edge_embedding_cpu")
    def _(edge_vec, roots, rmax_recip, edge_type, tables, l_max, p, factor, single):
        return _values_like(edge_vec, roots, l_max, single)

    @torch.library.register_fake("fastmlip::edge_embedding_backward_cpu")
    def _(gl, gn, ga, ge, gc, edge_vec, roots, rmax_recip, edge_type, tables, *rest):
        return _operands_like(edge_vec, roots)

    @torch.library.register_fake("fastmlip::edge_embedding_double_backward_cpu")
    def _(hv, hr, gl, gn, ga, ge, gc, edge_vec, roots, rmax, edge_type, tables, l_max, p, factor,
          single):  # fmt: skip
        return *_values_like(edge_vec, roots, l_max, single), *_operands_like(edge_vec, roots)

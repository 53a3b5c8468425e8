"""Gated nonlinearity: activations of scalars, and irreps multiplied by activated scalars.

Each column of ``x`` belongs to one segment. With an activation f, its factor c, u counting
multiplicities and m components::

    out[n, u]    = c f(x[n, u])                        scalars
    out[n, u, m] = c f(g[n, u]) * v[n, u, m]           gates g and what they gate, v

as e3nn's ``Gate``, whose factor gives f of a normal variable a second moment of one. Activations
are ``silu``, ``tanh`` and ``identity``.

The C++ and the Triton operators give the first and the second derivatives in one pass each; higher
ones take the reference.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from fastmlip import backend
from fastmlip.backend import FLOATS
from fastmlip.ops.ladder import Rung, keep, kept, ladder, own

Tensor = torch.Tensor
ACTIVATIONS = {  # in the order of csrc/operators/gate.h
    "identity": lambda x: x,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


class Segment(NamedTuple):
    """``mul`` scalars that begin at column ``gate`` of ``x``; with ``dim`` > 0 they gate ``mul``
    irreps of that dimension that begin at column ``start``. The result begins at column ``out``."""

    gate: int
    start: int
    out: int
    mul: int
    dim: int
    activation: str
    factor: float


def dims(segments: tuple[Segment, ...]) -> tuple[int, int]:
    """Columns of ``x`` and of the result."""
    return sum(s.mul * (1 + s.dim) for s in segments), sum(s.mul * max(1, s.dim) for s in segments)


def make_tables(segments: tuple[Segment, ...]) -> Tensor:
    """What the C++ operators read."""
    values = [*dims(segments), len(segments)]
    for *places, activation, factor in segments:
        (bits,) = struct.unpack("<q", struct.pack("<d", factor))
        values += [*places, list(ACTIVATIONS).index(activation), bits]
    return torch.tensor(values)


@cache
def key(segments: tuple[Segment, ...]) -> str:
    """The segments as a string, as an argument of an operator."""
    return json.dumps(segments)


@cache
def from_key(text: str) -> tuple[Segment, ...]:
    """The inverse of :func:`key`."""
    return tuple(Segment(*fields) for fields in json.loads(text))


def gate(x: Tensor, segments: tuple[Segment, ...], tables: Tensor | None = None) -> Tensor:
    """The nonlinearity of this page, ``[N, columns of the result]``.

    Args:
        x: ``[N, columns]`` in ``mul_ir`` layout, float32 or float64.
        segments: what the columns are; all are in one segment.
        tables: :func:`make_tables` of the segments, where the caller keeps it.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
    """
    columns, dim_out = dims(segments)
    if x.dtype not in FLOATS:
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] != columns:
        raise ValueError(f"x: expected shape [N, {columns}], got {tuple(x.shape)}")
    which = backend.choose(x)
    if which == "triton":
        return _TRITON["forward"](x, key(segments), dim_out)
    if which != "cpp":
        return reference(x, segments)
    if tables is None:
        tables = make_tables(segments)
    return _LADDER["forward"](x, tables, dim_out)


def reference(x: Tensor, segments: tuple[Segment, ...]) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    blocks = []
    for s in sorted(segments, key=lambda s: s.out):
        value = s.factor * ACTIVATIONS[s.activation](x[:, s.gate : s.gate + s.mul])
        if s.dim:
            gated = x[:, s.start : s.start + s.mul * s.dim].unflatten(1, (s.mul, s.dim))
            value = (value.unsqueeze(2) * gated).flatten(1)
        blocks.append(value)
    return torch.cat(blocks, 1) if blocks else x.new_zeros(x.shape)


# ---------------------------------------------------------------- the Triton operators


@backend.triton_op("fastmlip::gate", mutates_args=())
def _forward(x: Tensor, segments: str, dim_out: int) -> Tensor:
    from fastmlip.kernels import gate as kernels

    return kernels.forward(x, from_key(segments), dim_out)


@backend.triton_op("fastmlip::gate_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, segments: str) -> Tensor:
    """The gradient of x."""
    from fastmlip.kernels import gate as kernels

    return kernels.backward(grad, x, from_key(segments))


@backend.triton_op("fastmlip::gate_double_backward", mutates_args=())
def _double_backward(hx: Tensor, grad: Tensor, x: Tensor, segments: str) -> tuple[Tensor, Tensor]:
    """Gradients with respect to grad and x."""
    from fastmlip.kernels import gate as kernels

    return kernels.double_backward(hx, grad, x, from_key(segments))


# ---------------------------------------------------------------- derivatives


# ``tables`` are the tensor of the C++ operators or the string of the Triton operators


def _save(ctx, inputs, output) -> None:
    keep(ctx, *inputs[:2])


def _save_all(ctx, inputs, output) -> None:
    keep(ctx, *inputs)


def _forward_vjp(rungs, ctx, grad):
    return rungs["backward"](grad, *kept(ctx)), None, None


def _backward_vjp(rungs, ctx, hx):
    return *rungs["double_backward"](hx, *kept(ctx)), None


def _double_backward_vjp(rungs, ctx, to_grad, to_x):
    """From the reference, and so again to any order."""
    *operands, tables = kept(ctx)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        hx, grad, x = (own(t) for t in operands)
        y = reference(x, _segments(tables))
        (dx,) = torch.autograd.grad(y, x, grad, create_graph=True)
        second = torch.autograd.grad(
            dx, (grad, x), hx, create_graph=True, allow_unused=True, materialize_grads=True
        )
        total = (second[0] * to_grad).sum() + (second[1] * to_x).sum()
        third = torch.autograd.grad(
            total, (hx, grad, x), create_graph=again, allow_unused=True, materialize_grads=True
        )
    return *third, None


def _segments(tables: Tensor | str) -> tuple[Segment, ...]:
    """The inverse of :func:`make_tables`, or of :func:`key`."""
    if isinstance(tables, str):
        return from_key(tables)
    names, segments = list(ACTIVATIONS), []
    for first, start, out, mul, dim, number, bits in tables[3:].view(-1, 7).tolist():
        (factor,) = struct.unpack("<d", struct.pack("<q", bits))
        segments.append(Segment(first, start, out, mul, dim, names[number], factor))
    return tuple(segments)


def _ladder(suffix: str) -> dict[str, Callable[..., Any]]:
    def rung(name: str, save: Callable[..., None], vjp: Callable[..., Any]) -> Rung:
        return Rung(getattr(torch.ops.fastmlip, f"gate{name}{suffix}").default, save, vjp)

    return ladder(
        {
            "forward": rung("", _save, _forward_vjp),
            "backward": rung("_backward", _save_all, _backward_vjp),
            "double_backward": rung("_double_backward", _save_all, _double_backward_vjp),
        }
    )


_TRITON = _ladder("")
if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::gate_cpu")
    def _(x, tables, dim_out):
        return x.new_empty((x.shape[0], dim_out))

    @torch.library.register_fake("fastmlip::gate_backward_cpu")
    def _(grad, x, tables):
        return _like(x)

    @torch.library.register_fake("fastmlip::gate_double_backward_cpu")
    def _(hx, grad, x, tables):
        return _like(grad), _like(x)

    _like = partial(torch.empty_like, memory_format=torch.contiguous_format)
    _LADDER = _ladder("_cpu")

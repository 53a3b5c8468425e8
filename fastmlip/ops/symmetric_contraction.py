"""Polynomials of a node's features, with coefficients of its type: MACE's ``SymmetricContraction``.

With channels u, inputs i and terms t, each of which has an output m(t) and a monomial of degree 1
to 3 (:class:`fastmlip.polynomial.Polynomial`), and z the type of a node::

    out[n, m, u] = sum over t with m(t) = m:  C[z_n, t, u] * product over i in t of x[n, i, u]

MACE has the channels in front, ``[N, U, i]``, and multiplies dense tables of couplings
``U[m, i, j, k, p]`` and weights ``[z, p, u]``; of their product, summed over the orders of i, j, k,
this page takes what is not zero as C, and channels are innermost.

L(g, x, C) = <g, out(x, C)> is linear in g and in C. Three operators, each with or without a
derivative along a direction h of x, are all of its derivatives::

    value          out                 or   D_h out
    dx             dL/dx               or   D_h dL/dx
    dcoefficients  dL/dC               or   D_h dL/dC

because the derivative of <h, dL/dx> = D_h L in g is D_h out, and so on, and because a direction of
C takes the place of C. Two directions h, k are composed of them: L is cubic in x, so that with any
number s (it is |x| / |k|, for the digits)::

    D_k D_h F(x) = D_h' F(x + s k) - D_h' F(x - s k),    h' = h / (2 s),

is exact for F = out, dL/dx and dL/dC. Sums over nodes of a type run in their order: the same bits
in every run and for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastmlip import backend
from fastmlip.backend import FLOATS
from fastmlip.ops.edge_order import assert_in_range
from fastmlip.ops.ladder import Rung, asked, ladder
from fastmlip.polynomial import Polynomial

Tensor = torch.Tensor


def symmetric_contraction(
    x: Tensor,
    coefficients: Tensor,
    types: Tensor,
    problem: Polynomial,
    tables: Tensor | None = None,
) -> Tensor:
    """The polynomials of this page, ``[N, outputs, U]``.

    Args:
        x: ``[N, inputs, U]``, float32 or float64.
        coefficients: ``[num_types, terms, U]``, dtype of ``x``.
        types: at least N types, int64, in ``[0, num_types)``; more, as for ghost atoms, are not
            read.
        problem: inputs, outputs and terms.
        tables: ``problem.tables()`` on the device of ``x``, where the caller keeps it.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: a type out of range.
    """
    _check(x, coefficients, types, problem, tables)
    where = backend.choose(x)
    if where != "cpp":  # C++ looks itself
        assert_in_range(types[: x.shape[0]], "types", coefficients.shape[0], "num_types")
    if where == "reference":
        return reference(x, coefficients, types, problem)
    if tables is None:
        tables = problem.tables().to(x.device)
    calls = _CPP if where == "cpp" else _TRITON
    return calls["value"](x, None, coefficients, types, tables, problem.outputs)


def _check(x, coefficients, types, problem, tables) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    if x.dim() != 3 or x.shape[1] != problem.inputs:
        raise ValueError(
            f"x: expected shape [N, inputs, U] with {problem.inputs} inputs, got {tuple(x.shape)}"
        )
    if coefficients.dtype != x.dtype:
        raise TypeError(f"coefficients: expected {x.dtype} as x has, got {coefficients.dtype}")
    terms, channels = len(problem.terms), x.shape[2]
    shape = tuple(coefficients.shape)
    if len(shape) != 3 or shape[0] == 0 or shape[1] != terms or shape[2] != channels:
        raise ValueError(
            f"coefficients: expected shape [num_types, terms, U] with {terms} terms and {channels} "
            f"channels, got {shape}"
        )
    if types.dtype != torch.int64:
        raise TypeError(f"types: expected int64, got {types.dtype}")
    if types.dim() != 1 or types.shape[0] < x.shape[0]:
        raise ValueError(
            f"types: expected at least N = {x.shape[0]} entries, got {tuple(types.shape)}"
        )
    if tables is not None and (
        tables.dtype != torch.int64 or tables.shape != (len(problem.words),)
    ):
        raise ValueError(
            f"tables: expected problem.tables(), int64 of shape [{len(problem.words)}], got "
            f"{tables.dtype} of shape {tuple(tables.shape)}"
        )
    for name, other in (("coefficients", coefficients), ("types", types), ("tables", tables)):
        if other is not None and other.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x has, got {other.device}")


def reference(x: Tensor, coefficients: Tensor, types: Tensor, problem: Polynomial) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order.

    Its largest tensors are ``[N, terms, U]``."""
    rows = torch.tensor(problem.rows, dtype=torch.int64, device=x.device).view(-1, 4)
    output, i, j, k = rows.unbind(1)
    factors = torch.cat([torch.ones_like(x[:, :1]), x], 1) if problem.inputs else x
    products = coefficients.index_select(0, types[: x.shape[0]])
    for index in (i, j, k):
        products = products * factors.index_select(1, index)
    return x.new_zeros(x.shape[0], problem.outputs, x.shape[2]).index_add(1, output, products)


# ---------------------------------------------------------------- the Triton operators


@backend.triton_op("fastmlip::symmetric_contraction", mutates_args=())
def _value(
    x: Tensor, along: Tensor | None, coefficients: Tensor, types: Tensor, tables: Tensor,
    outputs: int,
) -> Tensor:  # fmt: skip
    """``[N, outputs, U]``, or its derivative along a direction of x."""
    from fastmlip.kernels import symmetric_contraction as kernels

    return kernels.value(x, along, coefficients, types, tables, outputs)


@backend.triton_op("fastmlip::symmetric_contraction_dx", mutates_args=())
def _dx(
    grad: Tensor, x: Tensor, along: Tensor | None, coefficients: Tensor, types: Tensor,
    tables: Tensor,
) -> Tensor:  # fmt: skip
    """The gradient of x, or its derivative along a direction of x."""
    from fastmlip.kernels import symmetric_contraction as kernels

    return kernels.dx(grad, x, along, coefficients, types, tables)


@backend.triton_op("fastmlip::symmetric_contraction_dcoefficients", mutates_args=())
def _dcoefficients(
    grad: Tensor, x: Tensor, along: Tensor | None, types: Tensor, tables: Tensor, num_types: int,
    terms: int,
) -> Tensor:  # fmt: skip
    """The gradient of coefficients, or its derivative along a direction of x."""
    from fastmlip.kernels import symmetric_contraction as kernels

    return kernels.dcoefficients(grad, x, along, types, tables, num_types, terms)


# ---------------------------------------------------------------- derivatives of both


def _save_value(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _value_vjp(rungs, ctx, grad):
    x, along, coefficients, types, tables = ctx.saved_tensors
    of_x, of_along, of_coefficients, *_ = asked(ctx)
    dx = dalong = dcoefficients = None
    if of_x:
        dx = rungs["dx"](grad, x, along, coefficients, types, tables)
    if of_along:
        dalong = rungs["dx"](grad, x, None, coefficients, types, tables)
    if of_coefficients:
        sizes = coefficients.shape[:2]
        dcoefficients = rungs["dcoefficients"](grad, x, along, types, tables, *sizes)
    return dx, dalong, dcoefficients, None, None, None


def _save_dx(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _dx_vjp(rungs, ctx, k):
    grad, x, along, coefficients, types, tables = ctx.saved_tensors
    of_grad, of_x, of_along, of_coefficients, *_ = asked(ctx)
    outputs, sizes = grad.shape[1], coefficients.shape[:2]
    dgrad = dx = dalong = dcoefficients = None
    if of_along:
        dalong = rungs["dx"](grad, x, k, coefficients, types, tables)
    if along is None:
        along, ends = k, [(x, 1.0)]
    else:
        along, ends = _two_directions(x, along, k)
    for end, sign in ends:
        if of_grad:
            found = rungs["value"](end, along, coefficients, types, tables, outputs)
            dgrad = _add(dgrad, sign, found)
        if of_x:
            dx = _add(dx, sign, rungs["dx"](grad, end, along, coefficients, types, tables))
        if of_coefficients:
            found = rungs["dcoefficients"](grad, end, along, types, tables, *sizes)
            dcoefficients = _add(dcoefficients, sign, found)
    return dgrad, dx, dalong, dcoefficients, None, None


def _save_dcoefficients(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])


def _dcoefficients_vjp(rungs, ctx, k):
    grad, x, along, types, tables = ctx.saved_tensors
    of_grad, of_x, of_along, *_ = asked(ctx)
    dgrad = dx = dalong = None
    if of_grad:
        dgrad = rungs["value"](x, along, k, types, tables, grad.shape[1])
    if of_x:
        dx = rungs["dx"](grad, x, along, k, types, tables)
    if of_along:
        dalong = rungs["dx"](grad, x, None, k, types, tables)
    return dgrad, dx, dalong, None, None, None, None


def _two_directions(x: Tensor, h: Tensor, k: Tensor) -> tuple[Tensor, list[tuple[Tensor, float]]]:
    """h' of this page, and the two ends with their signs; s is one number for each node, a power of
    two."""
    with torch.no_grad():
        size, step = (t.abs().sum((1, 2), keepdim=True) for t in (x, k))
        power = torch.where((size > 0) & (step > 0), size.log2() - step.log2(), 0.0)
        s = power.round().clamp(-100, 100).exp2()
    return h / (2 * s), [(x + s * k, 1.0), (x - s * k, -1.0)]


def _add(total: Tensor | None, sign: float, found: Tensor) -> Tensor:
    return found if total is None else total + sign * found


def _ladder(suffix: str) -> dict[str, Callable[..., Any]]:
    def rung(name: str, save: Callable[..., None], vjp: Callable[..., Any]) -> Rung:
        operator = getattr(torch.ops.fastmlip, f"symmetric_contraction{name}{suffix}").default
        return Rung(operator, save, vjp)

    return ladder(
        {
            "value": rung("", _save_value, _value_vjp),
            "dx": rung("_dx", _save_dx, _dx_vjp),
            "dcoefficients": rung("_dcoefficients", _save_dcoefficients, _dcoefficients_vjp),
        }
    )


_TRITON = _CPP = _ladder("")

if backend.load_extension() is None:  # shapes of the C++ operators, for tracing
    _CPP = _ladder("_cpu")

    @torch.library.register_fake("fastmlip::symmetric_contraction_cpu")
    def _(x, along, coefficients, types, tables, outputs):
        return x.new_empty((x.shape[0], outputs, x.shape[2]))

    @torch.library.register_fake("fastmlip::symmetric_contraction_dx_cpu")
    def _(grad, x, along, coefficients, types, tables):
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @torch.library.register_fake("fastmlip::symmetric_contraction_dcoefficients_cpu")
    def _(grad, x, along, types, tables, num_types, terms):
        return x.new_empty((num_types, terms, x.shape[2]))

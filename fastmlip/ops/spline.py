"""Values of tabulated functions of a distance: rows of splines.

At its place f, from 0 to 1, in the interval whose first row of coefficients is k, with the pieces
B_j of the quintic cardinal B-spline (:mod:`fastmlip.ops._spline` has their formulas)::

    out[e, c] = sum_j  B_j(place[e]) * coefficients[first_row[e] + j, c],   j = 0 .. 5

Functions of several kinds, such as those of pairs of types, lie one behind the other in one table:
``first_row`` says which an edge takes.

The C++ operators keep a block of columns of the table in cache and take the edges in batches; on a
GPU a program takes one edge.
Gradients are of ``place`` alone, to any order: the second derivative, which a Hessian needs, is
composed of the reference's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastmlip import backend
from fastmlip.backend import FLOATS
from fastmlip.ops import _spline
from fastmlip.ops.edge_order import assert_in_range
from fastmlip.ops.ladder import Rung, ladder

Tensor = torch.Tensor


def spline(place: Tensor, first_row: Tensor, table: Tensor, columns: int) -> Tensor:
    """The values of this page, ``[E, columns]``.

    Args:
        place: ``[E, 1]``, float32 or float64, in units of an interval.
        first_row: ``[E]``, int64, in ``[0, rows - 5)``.
        table: ``[blocks, rows, 64]``, dtype of ``place``: the coefficients ``[rows, columns]`` as
            :func:`fastmlip.ops._spline.table` lays them out.
        columns: of the coefficients.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: a row out of range.
    """
    _check(place, first_row, table, columns)
    where = backend.choose(place)
    if where == "cpp":
        return _CPP["forward"](place, first_row, table, columns)
    assert_in_range(first_row, "first_row", table.shape[1] - _spline.DEGREE, "rows - 5")
    if where == "triton":
        return _TRITON["forward"](place, first_row, table, columns)
    return reference(place, first_row, table, columns)


def _check(place, first_row, table, columns) -> None:
    if place.dtype not in FLOATS:
        raise TypeError(f"place: expected float32 or float64, got {place.dtype}")
    if table.dtype != place.dtype:
        raise TypeError(f"table: expected {place.dtype} as place has, got {table.dtype}")
    if table.requires_grad:
        raise ValueError("table: expected one without a gradient; a table cannot be trained")
    if first_row.dtype != torch.int64:
        raise TypeError(f"first_row: expected int64, got {first_row.dtype}")
    if first_row.dim() != 1:
        raise ValueError(f"first_row: expected shape [E], got {tuple(first_row.shape)}")
    edges = first_row.shape[0]
    if tuple(place.shape) != (edges, 1):
        raise ValueError(f"place: expected shape [E, 1], {(edges, 1)}, got {tuple(place.shape)}")
    blocks, rows = _spline.num_blocks(columns), _spline.DEGREE + 1
    if (
        table.dim() != 3
        or (table.shape[0], table.shape[2]) != (blocks, _spline.BLOCK)
        or table.shape[1] < rows
    ):
        raise ValueError(
            f"table: expected that of {columns} columns of coefficients, shape [{blocks}, rows, "
            f"{_spline.BLOCK}] with {rows} rows at least, got {tuple(table.shape)}"
        )
    for name, other in (("first_row", first_row), ("table", table)):
        if other.device != place.device:
            raise ValueError(
                f"{name}: expected device {place.device} as place has, got {other.device}"
            )


def reference(place: Tensor, first_row: Tensor, table: Tensor, columns: int) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    return _spline.combine(_spline.basis(place), table, first_row, columns)


# ---------------------------------------------------------------- derivatives


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.columns = inputs
    ctx.save_for_backward(*tensors)


def _forward_vjp(rungs, ctx, grad):
    place, first_row, table = ctx.saved_tensors
    return rungs["backward"](grad, place, first_row, table, ctx.columns), None, None, None


def _backward_vjp(rungs, ctx, h):
    """In torch's operators, which it differentiates further."""
    grad, place, *rest = ctx.saved_tensors
    slope, bend = (
        _spline.combine(_spline.basis(place, order), rest[1], rest[0], ctx.columns)
        for order in (1, 2)
    )
    return h * slope, h * (grad * bend).sum(1, keepdim=True), None, None, None


def _ladder(suffix: str) -> dict[str, Callable[..., Any]]:
    def rung(name: str, vjp: Callable[..., Any]) -> Rung:
        return Rung(getattr(torch.ops.fastmlip, f"spline{name}{suffix}").default, _save, vjp)

    return ladder({"forward": rung("", _forward_vjp), "backward": rung("_backward", _backward_vjp)})


@backend.triton_op("fastmlip::spline", mutates_args=())
def _forward(place: Tensor, first_row: Tensor, table: Tensor, columns: int) -> Tensor:
    from fastmlip.kernels import spline as kernels

    return kernels.forward(place, first_row, table, columns)


@backend.triton_op("fastmlip::spline_backward", mutates_args=())
def _backward(
    grad: Tensor, place: Tensor, first_row: Tensor, table: Tensor, columns: int
) -> Tensor:
    """The gradient of place."""
    from fastmlip.kernels import spline as kernels

    return kernels.backward(grad, place, first_row, table, columns)


_TRITON = _ladder("")

if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::spline_cpu")
    def _(place, first_row, table, columns):
        return place.new_empty((place.shape[0], columns))

    @torch.library.register_fake("fastmlip::spline_backward_cpu")
    def _(grad, place, first_row, table, columns):
        return place.new_empty((place.shape[0], 1))

    _CPP = _ladder("_cpu")

"""tensor_product_conv with edge weights made from a radial function, never all at once.

The edge weights of :mod:`fastmlip.ops.tensor_product_conv` are the last layer of a radial network
(or a spline) and by far the largest tensor of a model, ``[E, weight_numel]``. Here they are::

    edge_weight[e] = radial[pair[e]] @ weight                        width rows of weight, or
    edge_weight[e] = radial[e] @ weight[first_row[e] : first_row[e] + width]

with ``radial [E, width]`` and ``pair`` from :func:`fastmlip.ops.edge_pair` (each edge its own,
where it is not given): ij and ji have one distance, so their weights are made once, and the
gradient of ``radial`` is that of the pair, in the row that stands for it. The second form is a
B-spline of degree ``width - 1`` with the coefficients ``weight``.

The C++ operators make rows of edge_weight for a few nodes at a time and use them while they are in
cache, in the forward and in the backward pass, which also sums what goes back to ``radial``. The
gradient of ``weight`` and second derivatives are composed of :mod:`tensor_product_conv` and matrix
products, and hold ``[E, weight_numel]`` tensors: for training, make edge_weight yourself. So does
every backend but the C++ one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from fastmlip import backend
from fastmlip.ops.edge_order import edge_order
from fastmlip.ops.ladder import Rung, ladder
from fastmlip.ops.tensor_product_conv import reference as conv_reference
from fastmlip.ops.tensor_product_conv import tensor_product_conv
from fastmlip.problem import TensorProductProblem

Tensor = torch.Tensor


def radial_conv(
    x: Tensor,
    edge_attr: Tensor,
    radial: Tensor,
    weight: Tensor,
    edge_dst: Tensor,
    edge_src: Tensor,
    problem: TensorProductProblem,
    tables: Tensor | None = None,
    edge_pair: Tensor | None = None,
    first_row: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """The convolution of this page: ``[N, irreps_out.dim]`` in ``mul_ir`` layout.

    Args:
        x: node features ``[N, irreps_in1.dim]``, float32 or float64.
        edge_attr: ``[E, irreps_in2.dim]``, dtype of ``x``.
        radial: ``[E, width]``, dtype of ``x``.
        weight: ``[width, problem.weight_numel]``, with ``first_row`` as many rows as there are
            coefficients; dtype of ``x``.
        edge_dst: receivers ``[E]``, int32 or int64, in ``[0, N)``, in any order.
        edge_src: senders ``[E]``, likewise.
        problem: irreps and instructions.
        tables: ``problem.tables()`` on the device of ``x``, where the caller keeps it.
        edge_pair: ``[E]`` int64, the edge whose row of ``radial`` an edge takes.
        first_row: ``[E]`` int64, the first of the ``width`` rows of ``weight`` that an edge takes.
        order: :func:`fastmlip.ops.edge_order` of the edges, where the caller keeps it.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: an index out of range.
    """
    _check(x, edge_attr, radial, weight, edge_dst, edge_src, problem, edge_pair, first_row)
    if backend.choose(x) != "cpp":
        edge_weight = edge_weights(radial, weight, edge_pair, first_row)
        return tensor_product_conv(x, edge_attr, edge_weight, edge_dst, edge_src, problem, tables)
    if tables is None:
        tables = problem.tables()
    if order is None:
        order = edge_order(edge_dst, edge_src, x.shape[0])
    operands = (x, edge_attr, radial, weight, edge_pair, first_row, order, tables)
    return _LADDER["forward"](*operands, problem.dim_out)


def _check(x, edge_attr, radial, weight, edge_dst, edge_src, problem, edge_pair, first_row) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    edges = edge_dst.shape[0] if edge_dst.dim() == 1 else None
    for name, value, columns, meaning in (
        ("x", x, problem.dim_in1, "[N, irreps_in1.dim]"),
        ("edge_attr", edge_attr, problem.dim_in2, "[E, irreps_in2.dim]"),
        ("weight", weight, problem.weight_numel, "[rows, weight_numel]"),
    ):
        if value.dim() != 2 or value.shape[1] != columns:
            raise ValueError(
                f"{name}: expected shape {meaning} with {columns} columns, got {tuple(value.shape)}"
            )
    if radial.dim() != 2 or radial.shape[1] == 0:
        raise ValueError(f"radial: expected shape [E, width], got {tuple(radial.shape)}")
    for name, value in (("edge_attr", edge_attr), ("radial", radial), ("weight", weight)):
        if value.dtype != x.dtype:
            raise TypeError(f"{name}: expected {x.dtype} as x has, got {value.dtype}")
    for name, other in (
        ("edge_attr", edge_attr), ("radial", radial), ("weight", weight), ("edge_dst", edge_dst),
        ("edge_src", edge_src), ("edge_pair", edge_pair), ("first_row", first_row),
    ):  # fmt: skip
        if other is not None and other.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x has, got {other.device}")
    for name, index in (("edge_dst", edge_dst), ("edge_src", edge_src)):
        if index.dim() != 1:
            raise ValueError(f"{name}: expected shape [E], got {tuple(index.shape)}")
        if index.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name}: expected int32 or int64, got {index.dtype}")
    if edge_dst.dtype != edge_src.dtype:
        raise TypeError(
            f"edge_src: expected {edge_dst.dtype} as edge_dst has, got {edge_src.dtype}"
        )
    if edge_pair is not None and first_row is not None:
        raise ValueError("edge_pair and first_row: give one of them, not both")
    for name, index in (("edge_pair", edge_pair), ("first_row", first_row)):
        if index is not None and (index.dim() != 1 or index.dtype != torch.int64):
            raise TypeError(f"{name}: expected int64 of shape [E], got {index.dtype}")
    for name, rows in (
        ("edge_src", edge_src), ("edge_attr", edge_attr), ("radial", radial),
        ("edge_pair", edge_pair), ("first_row", first_row),
    ):  # fmt: skip
        if rows is not None and rows.shape[0] != edges:
            raise ValueError(
                f"{name}: expected E = {edges} rows as in edge_dst, got {rows.shape[0]}"
            )
    width, rows = radial.shape[1], weight.shape[0]
    if rows < width or (first_row is None and rows != width):
        raise ValueError(
            f"weight: expected {'at least ' if first_row is not None else ''}{width} rows, as many "
            f"as radial has columns, got {rows}"
        )


# ---------------------------------------------------------------- in plain PyTorch


def reference(
    x: Tensor,
    edge_attr: Tensor,
    radial: Tensor,
    weight: Tensor,
    edge_dst: Tensor,
    edge_src: Tensor,
    problem: TensorProductProblem,
    edge_pair: Tensor | None = None,
    first_row: Tensor | None = None,
) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    edge_weight = edge_weights(radial, weight, edge_pair, first_row)
    return conv_reference(x, edge_attr, edge_weight, edge_dst, edge_src, problem)


def edge_weights(
    radial: Tensor, weight: Tensor, edge_pair: Tensor | None, first_row: Tensor | None
) -> Tensor:
    """``edge_weight [E, weight_numel]`` of this page, linear in ``radial`` and in ``weight``."""
    if first_row is not None:
        terms = (
            radial[:, i : i + 1] * weight.index_select(0, first_row + i)
            for i in range(radial.shape[1])
        )
        return sum(terms, radial.new_zeros(1))
    return (radial if edge_pair is None else radial.index_select(0, edge_pair)) @ weight


def _to_radial(dw: Tensor, weight: Tensor, edge_pair, first_row, width: int) -> Tensor:
    """What ``dw``, the gradient of edge_weight, gives to ``radial``."""
    if first_row is not None:
        columns = [(dw * weight.index_select(0, first_row + i)).sum(1) for i in range(width)]
        return torch.stack(columns, 1)
    dradial = dw @ weight.t()
    if edge_pair is None:
        return dradial
    return torch.zeros_like(dradial).index_add(0, edge_pair, dradial)


def _to_weight(dw: Tensor, radial: Tensor, weight: Tensor, edge_pair, first_row) -> Tensor:
    """What ``dw`` gives to ``weight``."""
    if first_row is None:
        return (radial if edge_pair is None else radial.index_select(0, edge_pair)).t() @ dw
    result = torch.zeros_like(weight)
    for i in range(radial.shape[1]):
        result = result.index_add(0, first_row + i, radial[:, i : i + 1] * dw)
    return result


# ---------------------------------------------------------------- derivatives


def _save(ctx, inputs, output) -> None:
    *tensors, dim_out = inputs
    ctx.save_for_backward(*tensors)
    ctx.dim_out = dim_out


def _forward_vjp(rungs, ctx, g):
    x, a, radial, weight, pair, first, order, tables = ctx.saved_tensors
    dx, da, dradial = rungs["backward"](
        g, x, a, radial, weight, pair, first, order, tables, ctx.dim_out
    )
    dweight = None
    if ctx.needs_input_grad[3]:
        w = edge_weights(radial, weight, pair, first)
        dw = _conv("backward")(g, x, a, w, order, tables, ctx.dim_out)[2]
        dweight = _to_weight(dw, radial, weight, pair, first)
    return dx, da, dradial, dweight, None, None, None, None, None


def _backward_vjp(rungs, ctx, hx, ha, hradial):
    """<h, (dx, da, dradial)> is <(hx, ha, hw), (dx, da, dw)> of tensor_product_conv, where hw is
    the edge weight of hradial."""
    g, x, a, radial, weight, pair, first, order, tables = ctx.saved_tensors
    w = edge_weights(radial, weight, pair, first)
    hw = edge_weights(hradial, weight, pair, first)
    gg, gx, ga, gw = _conv("double_backward")(hx, ha, hw, g, x, a, w, order, tables, ctx.dim_out)
    gradial = _to_radial(gw, weight, pair, first, radial.shape[1])
    gweight = None
    if ctx.needs_input_grad[4]:
        dw = _conv("backward")(g, x, a, w, order, tables, ctx.dim_out)[2]
        gweight = _to_weight(gw, radial, weight, pair, first)
        gweight = gweight + _to_weight(dw, hradial, weight, pair, first)
    return gg, gx, ga, gradial, gweight, None, None, None, None, None


def _conv(rung: str) -> Any:
    return getattr(torch.ops.fastmlip, f"tensor_product_conv_{rung}_cpu")


if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::radial_conv_cpu")
    def _(x, edge_attr, radial, weight, edge_pair, first_row, order, tables, dim_out):
        return x.new_empty((x.shape[0], dim_out))

    @torch.library.register_fake("fastmlip::radial_conv_backward_cpu")
    def _(grad, x, edge_attr, radial, weight, edge_pair, first_row, order, tables, dim_out):
        empty = partial(torch.empty_like, memory_format=torch.contiguous_format)
        return empty(x), empty(edge_attr), empty(radial)

    _LADDER = ladder(
        {
            "forward": Rung(torch.ops.fastmlip.radial_conv_cpu.default, _save, _forward_vjp),
            "backward": Rung(
                torch.ops.fastmlip.radial_conv_backward_cpu.default, _save, _backward_vjp
            ),
        }
    )

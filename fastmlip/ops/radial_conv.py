"""tensor_product_conv with edge weights made from a radial function, never all at once.

The edge weights of :mod:`fastmlip.ops.tensor_product_conv` are the last layer of a radial network
(or a spline) and by far the largest tensor of a model, ``[E, weight_numel]``. Here they are::

    edge_weight[e] = network(radial[pair[e]]) @ weight                      or
    edge_weight[e] = sum_j  B_j(radial[e]) coefficients[first_row[e] + j],  j = 0 .. 5

with ``pair`` from :func:`fastmlip.ops.edge_pair` (each edge its own, where it is not given): ij and
ji have one distance, so their weights are made once, and the gradient of ``radial`` is that of the
pair, in the row that stands for it. The network is its hidden layers, all of one width, each
``silu(row @ W)``, or nothing. The second form is a quintic B-spline: ``radial`` is the place in an
interval of its grid, from 0 to 1, and ``weight`` the table of its coefficients, both as
:mod:`fastmlip.ops._spline` says.

The C++ operators make rows of edge_weight for a few nodes at a time and use them while they are in
cache, in the forward and in the backward pass, which also sums what goes back to ``radial``. The
products of the first form are kept for the backward pass where those of all pairs fit into 2 GiB,
and made again otherwise; gradients of pairs whose edges are far apart wait for each other, so that
a pair's goes back through the network once, or one by one where that would take more than 2 GiB.
Which of both is planned from the edges alone, so that no bit depends on threads, nor on the order
of nodes while all that should wait can. Second derivatives are composed of
:mod:`tensor_product_conv` and matrix products, and hold ``[E, weight_numel]`` tensors. So does
everything where ``weight`` or ``hidden`` require a gradient and under transforms of ``torch.func``,
with layers of :mod:`fastmlip.ops.pair_linear`, and on every backend but the C++ one.
"""

from __future__ import annotations

from functools import partial

import torch

from fastmlip import backend
from fastmlip.ops import _radial_conv_spline as on_gpu
from fastmlip.ops import _spline as spline
from fastmlip.ops.edge_order import assert_in_range, check_edges, check_order, edge_order
from fastmlip.ops.ladder import Rung, ladder, transformed
from fastmlip.ops.pair_linear import pair_linear, pair_linear_dx
from fastmlip.ops.pair_linear import reference as pair_linear_reference
from fastmlip.ops.tensor_product_conv import _CPP as conv
from fastmlip.ops.tensor_product_conv import reference as conv_reference
from fastmlip.ops.tensor_product_conv import tensor_product_conv
from fastmlip.problem import TensorProductProblem

Tensor = torch.Tensor
KEPT_BYTES = 2 << 30  # of rows of one call, and as much of their gradients


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
    hidden: Tensor | None = None,
) -> Tensor:
    """The convolution of this page: ``[N, irreps_out.dim]`` in ``problem.layout``.

    Args:
        x: node features ``[N, irreps_in1.dim]`` in ``problem.layout``, float32 or float64.
        edge_attr: ``[E, irreps_in2.dim]``, dtype of ``x``.
        radial: ``[E, columns]``, dtype of ``x``; ``[E, 1]`` with ``first_row``.
        weight: ``[rows, problem.weight_numel]``, dtype of ``x``: a row for each column of
            ``radial``, or of the hidden layers; with ``first_row``, the spline's table of
            ``[rows, problem.weight_numel]`` coefficients.
        edge_dst: receivers ``[E]``, int32 or int64, in ``[0, N)``, in any order.
        edge_src: senders ``[E]``, likewise.
        problem: irreps and instructions.
        tables: ``problem.tables()`` on the device of ``x``, where the caller keeps it.
        edge_pair: ``[E]`` int64, the edge whose row of ``radial`` an edge takes; an edge that
            stands for others stands for itself.
        first_row: ``[E]`` int64, the first of the six rows of coefficients that an edge takes.
        order: :func:`fastmlip.ops.edge_order` of the edges, where the caller keeps it.
        hidden: weights of the hidden layers, flat, one behind the other: ``[columns, width]`` and
            then any number of ``[width, width]``, width being the rows of ``weight``.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: an index out of range.
    """
    _check(x, edge_attr, radial, weight, edge_dst, edge_src, problem, edge_pair, first_row, hidden)
    trained = weight.requires_grad or (hidden is not None and hidden.requires_grad) or transformed()
    which = backend.choose(x)
    cpp, composed = which == "cpp", trained and torch.is_grad_enabled()
    if which == "triton" and first_row is not None and not composed:
        return _call_triton(
            x, edge_attr, radial, weight, edge_dst, edge_src, problem, tables, first_row, order
        )
    if not cpp or composed:
        edge_weight = edge_weights(
            radial, weight, edge_pair, first_row, hidden, problem.weight_numel, once=cpp
        )
        return tensor_product_conv(
            x, edge_attr, edge_weight, edge_dst, edge_src, problem, tables, order
        )
    if tables is None:
        tables = problem.tables()
    if order is None:
        order = edge_order(edge_dst, edge_src, x.shape[0])
    operands = (x, edge_attr, radial, weight, hidden, edge_pair, first_row, order, tables)
    wanted = x.requires_grad or edge_attr.requires_grad or radial.requires_grad
    room = 0
    if wanted and torch.is_grad_enabled():
        room = KEPT_BYTES // max(1, problem.weight_numel * weight.element_size())
    return _LADDER["forward"](*operands, problem.dim_out, problem.weight_numel, room)[0]


def _call_triton(
    x, edge_attr, place, table, edge_dst, edge_src, problem, tables, first_row, order
) -> Tensor:
    assert_in_range(first_row, "first_row", table.shape[1] - spline.DEGREE, "rows - 5")
    if tables is None:
        tables = problem.tables().to(x.device)
    if order is None:
        order = edge_order(edge_dst, edge_src, x.shape[0])
    else:
        check_order(order, x.shape[0], edge_dst.shape[0], x.device)
    rest = (table, first_row, order, tables, problem.key)
    return on_gpu.LADDER["forward"](x, edge_attr, place, *rest)


def _check(
    x, edge_attr, radial, weight, edge_dst, edge_src, problem, edge_pair, first_row, hidden
) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    for name, value, columns, meaning in (
        ("x", x, problem.dim_in1, "[N, irreps_in1.dim]"),
        ("edge_attr", edge_attr, problem.dim_in2, "[E, irreps_in2.dim]"),
    ):
        if value.dim() != 2 or value.shape[1] != columns:
            raise ValueError(
                f"{name}: expected shape {meaning} with {columns} columns, got {tuple(value.shape)}"
            )
    if radial.dim() != 2 or radial.shape[1] == 0:
        raise ValueError(f"radial: expected shape [E, width], got {tuple(radial.shape)}")
    if first_row is None:
        _check_network(radial, weight, hidden, problem)
    else:
        _check_spline(radial, weight, hidden, problem)
    for name, value in (
        ("edge_attr", edge_attr), ("radial", radial), ("weight", weight), ("hidden", hidden),
    ):  # fmt: skip
        if value is not None and value.dtype != x.dtype:
            raise TypeError(f"{name}: expected {x.dtype} as x has, got {value.dtype}")
    for name, other in (
        ("edge_attr", edge_attr), ("radial", radial), ("weight", weight), ("edge_pair", edge_pair),
        ("first_row", first_row), ("hidden", hidden),
    ):  # fmt: skip
        if other is not None and other.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x has, got {other.device}")
    check_edges(edge_dst, edge_src, x, "x")
    if edge_pair is not None and first_row is not None:
        raise ValueError("edge_pair and first_row: give one of them, not both")
    for name, index in (("edge_pair", edge_pair), ("first_row", first_row)):
        if index is not None and (index.dim() != 1 or index.dtype != torch.int64):
            raise TypeError(f"{name}: expected int64 of shape [E], got {index.dtype}")
    for name, rows in (
        ("edge_attr", edge_attr), ("radial", radial), ("edge_pair", edge_pair),
        ("first_row", first_row),
    ):  # fmt: skip
        if rows is not None and rows.shape[0] != edge_dst.shape[0]:
            raise ValueError(
                f"{name}: expected E = {edge_dst.shape[0]} rows as in edge_dst, got {rows.shape[0]}"
            )


def _check_network(
    radial: Tensor, weight: Tensor, hidden: Tensor | None, problem: TensorProductProblem
) -> None:
    if weight.dim() != 2 or weight.shape[1] != problem.weight_numel:
        raise ValueError(
            f"weight: expected shape [rows, weight_numel] with {problem.weight_numel} columns, got "
            f"{tuple(weight.shape)}"
        )
    columns, rows = radial.shape[1], weight.shape[0]
    if hidden is not None:
        more = hidden.numel() - columns * rows
        if hidden.dim() != 1 or rows == 0 or more < 0 or more % (rows * rows):
            raise ValueError(
                f"hidden: expected {columns} x {rows} weights, and any number of times {rows} x "
                f"{rows}, in one dimension; got shape {tuple(hidden.shape)}"
            )
    elif rows != columns:
        raise ValueError(
            f"weight: expected {columns} rows, as many as radial has columns, got {rows}"
        )


def _check_spline(
    radial: Tensor, weight: Tensor, hidden: Tensor | None, problem: TensorProductProblem
) -> None:
    if hidden is not None:
        raise ValueError("hidden and first_row: give one of them, not both")
    blocks = spline.num_blocks(problem.weight_numel)
    if weight.dim() != 3 or weight.shape[0] != blocks or weight.shape[2] != spline.BLOCK:
        raise ValueError(
            f"weight: expected the table of {problem.weight_numel} columns of coefficients, shape "
            f"[{blocks}, rows, {spline.BLOCK}], got {tuple(weight.shape)}"
        )
    if weight.shape[1] <= spline.DEGREE:
        raise ValueError(f"weight: expected at least 6 rows of coefficients, got {weight.shape[1]}")
    if radial.shape[1] != 1:
        raise ValueError(f"radial: expected shape [E, 1], got {tuple(radial.shape)}")


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
    hidden: Tensor | None = None,
) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    edge_weight = edge_weights(radial, weight, edge_pair, first_row, hidden, problem.weight_numel)
    return conv_reference(x, edge_attr, edge_weight, edge_dst, edge_src, problem)


def edge_weights(
    radial: Tensor,
    weight: Tensor,
    edge_pair: Tensor | None,
    first_row: Tensor | None,
    hidden: Tensor | None,
    weight_numel: int,
    once: bool = False,
) -> Tensor:
    """``edge_weight [E, weight_numel]`` of this page, linear in ``weight``; rows of a network's
    layers for every edge, or (``once``) on the C++ backend once for each pair."""
    rows = radial if first_row is None else spline.basis(radial)
    for layer in _layers(hidden, radial.shape[1], weight.shape[0]):
        # only rows that stand for an edge: what is in the others must not matter, even NaN
        product = _from_rows(rows, layer, edge_pair, None, layer.shape[1], once)
        rows = torch.nn.functional.silu(product)
    return _from_rows(rows, weight, edge_pair, first_row, weight_numel, once)


def _from_rows(
    rows: Tensor,
    weight: Tensor,
    edge_pair: Tensor | None,
    first_row: Tensor | None,
    weight_numel: int,
    once: bool,
) -> Tensor:
    """edge_weight of the rows that ``weight`` is multiplied by, or of the factors of a spline."""
    if first_row is not None:
        return spline.combine(rows, weight, first_row, weight_numel)
    if edge_pair is None:
        return rows @ weight
    return (pair_linear if once else pair_linear_reference)(rows, weight, edge_pair)


def _layers(hidden: Tensor | None, columns: int, width: int) -> list[Tensor]:
    """The hidden layers' weights."""
    if hidden is None:
        return []
    first = hidden[: columns * width].view(columns, width)
    return [first, *hidden[columns * width :].view(-1, width, width)]


def _to_rows(
    dw: Tensor, weight: Tensor, edge_pair: Tensor | None, first_row: Tensor | None
) -> Tensor:
    """What ``dw``, the gradient of edge_weight, gives to the rows of :func:`_from_rows`."""
    if first_row is not None:
        coefficients = spline.coefficients(weight, first_row, dw.shape[1])
        return torch.stack([(dw * row).sum(1) for row in coefficients], 1)
    if edge_pair is None:
        return dw @ weight.t()
    return pair_linear_dx(weight, dw, edge_pair)


# ---------------------------------------------------------------- derivatives


def _save_forward(ctx, inputs, output) -> None:
    *tensors, dim_out, weight_numel, room = inputs
    kept = output[1]  # shows no rows, see csrc/torch/radial_conv.cpp
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)  # a gradient of `kept` would be as large
    ctx.save_for_backward(*tensors, kept)
    ctx.sizes = (dim_out, weight_numel, room)


def _save_backward(ctx, inputs, output) -> None:
    *tensors, _, dim_out, weight_numel, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.sizes = (dim_out, weight_numel)


def _forward_vjp(rungs, ctx, g, _):
    if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:  # of weight, of hidden
        raise NotImplementedError("radial_conv_cpu: no gradient of weights; call radial_conv")
    dx, da, dradial = rungs["backward"](g, *ctx.saved_tensors, *ctx.sizes)
    return dx, da, dradial, *(None,) * 9


def _backward_vjp(rungs, ctx, hx, ha, hradial):
    """<h, (dx, da, dradial)> is <(hx, ha, hw), (dx, da, dw)> of tensor_product_conv, where hw is
    the change of edge_weight along hradial."""
    g, x, a, radial, weight, hidden, pair, first, order, tables = ctx.saved_tensors
    dim_out, weight_numel = ctx.sizes
    functions, rows, hrows = _functions(radial, hradial, weight, hidden, first)
    w, hw = (_from_rows(r, weight, pair, first, weight_numel, once=True) for r in (rows, hrows))
    gg, gx, ga, gw = conv["double_backward"](hx, ha, hw, g, x, a, w, order, tables, dim_out)
    grows = _to_rows(gw, weight, pair, first)
    if functions:
        dw = conv["backward"](g, x, a, w, order, tables, dim_out)[2]
        ghrows = _to_rows(dw, weight, pair, first)
    for slope, curvature, back in reversed(functions):
        grows = back(grows * slope + ghrows * curvature)
        ghrows = back(ghrows * slope)
    return gg, gx, ga, grows, *(None,) * 10


def _functions(radial, hradial, weight, hidden, first):
    """What is between ``radial`` and the rows that ``weight`` is multiplied by, hidden layers or
    the spline's factors: (slope, its change along hradial, back to its argument) of each; and those
    rows, and their change along hradial."""
    if first is not None:
        slope, curvature = spline.basis(radial, 1), spline.basis(radial, 2) * hradial
        back = partial(torch.sum, dim=1, keepdim=True)
        return [(slope, curvature, back)], spline.basis(radial), slope * hradial
    functions, rows, hrows = [], radial, hradial
    for layer in _layers(hidden, radial.shape[1], weight.shape[0]):
        z, hz = rows @ layer, hrows @ layer
        slope = _silu_first(z)
        functions.append((slope, _silu_second(z) * hz, partial(torch.matmul, other=layer.t())))
        rows, hrows = torch.nn.functional.silu(z), slope * hz
    return functions, rows, hrows


def _silu_first(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _silu_second(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s) * (2 + z * (1 - 2 * s))


if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::radial_conv_cpu")
    def _(
        x, edge_attr, radial, weight, hidden, pair, first_row, order, tables, dim_out,
        weight_numel, room,
    ):  # fmt: skip
        return x.new_empty((x.shape[0], dim_out)), x.new_empty((0, weight_numel))

    @torch.library.register_fake("fastmlip::radial_conv_backward_cpu")
    def _(
        grad, x, edge_attr, radial, weight, hidden, pair, first_row, order, tables, kept, dim_out,
        weight_numel, room,
    ):  # fmt: skip
        empty = partial(torch.empty_like, memory_format=torch.contiguous_format)
        return empty(x), empty(edge_attr), empty(radial)

    _OPS = torch.ops.fastmlip
    _LADDER = ladder(
        {
            "forward": Rung(_OPS.radial_conv_cpu.default, _save_forward, _forward_vjp),
            "backward": Rung(_OPS.radial_conv_backward_cpu.default, _save_backward, _backward_vjp),
        }
    )

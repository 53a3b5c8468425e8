"""GPU kernels of radial_conv in its spline form; fastmlip/ops/radial_conv.py states the formula.

The two passes of :mod:`kernels.tensor_product_conv`, with edge weights that are made in registers
and live for one path of one edge: a lane reads the six coefficients of its channel, which other
edges and nodes read too, so that they come out of the second cache. With the first coefficient c[0]
and the differences d[j] of the six (fastmlip/ops/_spline.py)::

    w = c[0] + sum_j S_j(place) d[j],   w' = sum_j S_j'(place) d[j],   w'' = sum_j S_j''(place) d[j]

What ``dw`` is there becomes the gradient of the place here, ``sum_p,u dw w'``, one number of an
edge. In second order, with the direction hplace, hw is ``w' hplace`` and the gradient of the place
is ``sum_p,u gw w' + dw w'' hplace``. Programs of other channels and blocks write their own row of
``parts``, as those of the gradient of edge_attr.
"""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.problem import TensorProductProblem

from ._channels import add_scaled, channel_step, component_step, dot, inside, load, scale
from ._launches import LANES, constants, launches, rows_like
from ._pack import packed
from ._paths import attr, length, load_attr, path, receive, send
from ._run import kernel, run
from .spline import BENDS, SLOPES, STEPS, polynomial

Tensor = torch.Tensor


@triton.jit
def _polynomials(place, factor, POWERS: tl.constexpr):
    """``factor`` times each of the five."""
    values = ()
    for j in tl.static_range(5):
        values = values + (factor * polynomial(place, POWERS, j),)
    return values


@triton.jit
def _coefficients(table, row, rows, column, mask, BLOCK: tl.constexpr):
    """The first of the six of each channel, and their differences."""
    block = (column // BLOCK).to(tl.int64)
    at = table + (block * rows + row) * BLOCK + column % BLOCK
    six = load(at, 6, BLOCK, mask)
    values = (six[0],)
    for j in tl.static_range(5):
        values = values + (six[j + 1] - six[j],)
    return values


@triton.jit
def _combined(coefficients, factors):
    """The sum over the differences."""
    total = factors[0] * coefficients[1]
    for j in tl.static_range(1, 5):
        total += factors[j] * coefficients[j + 1]
    return total


# ---------------------------------------------------------------- kernels


@kernel("first_row", "rows", "pointers", "edges", "senders")
def _radial_conv_fwd_kernel(
    out,  # [N, DIM3]
    x,  # [N, DIM1], packed
    hx,  # like x; hx, ha and hplace are None in first order
    edge_attr,  # [E, DIM2]
    ha,
    place,  # [E]
    hplace,
    table,  # [blocks, rows, BLOCK]
    first_row,  # [E]
    rows,
    pointers,  # [N + 1]: the edges of node n are edges[pointers[n] : pointers[n + 1]]
    edges,  # [E]
    senders,  # [E], of the edges in this order
    STEPS: tl.constexpr,
    SLOPES: tl.constexpr,
    BLOCK: tl.constexpr,
    TABLE: tl.constexpr,
    MUL: tl.constexpr,
    D1: tl.constexpr,
    IN1: tl.constexpr,
    DIM1: tl.constexpr,
    DIM2: tl.constexpr,
    DIM3: tl.constexpr,
    BLOCK_U: tl.constexpr,
    IR_MUL: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask = inside(u, MUL, BLOCK_U)
    out_row = out + node * DIM3
    stride: tl.constexpr = component_step(IR_MUL, MUL)

    sums = ()  # of each path: d3 blocks of channels
    for j in tl.static_range(length(TABLE)):
        for p in tl.static_range(attr(TABLE, j, "paths")):
            step = channel_step(IR_MUL, path(TABLE, j, p, "d3"))
            row = out_row + path(TABLE, j, p, "out_offset") + u * step
            earlier = mask & path(TABLE, j, p, "adds")
            sums = sums + (load(row, path(TABLE, j, p, "d3"), stride, earlier),)

    for i in range(tl.load(pointers + node), tl.load(pointers + node + 1)):
        e = tl.load(edges + i)
        at_x = tl.load(senders + i) * DIM1 + IN1 + u
        xs = load(x + at_x, D1, MUL, mask)
        first, at = tl.load(first_row + e), tl.load(place + e)
        steps = _polynomials(at, 1.0, STEPS)
        if hx is not None:
            hxs = load(hx + at_x, D1, MUL, mask)
            changes = _polynomials(at, tl.load(hplace + e), SLOPES)
        new_sums = ()
        for j in tl.static_range(length(TABLE)):
            at_a = e * DIM2 + attr(TABLE, j, "in2_offset")
            a = load_attr(edge_attr + at_a, attr(TABLE, j, "d2"))
            has = None if ha is None else load_attr(ha + at_a, attr(TABLE, j, "d2"))
            for p in tl.static_range(attr(TABLE, j, "paths")):
                column = path(TABLE, j, p, "weight_offset") + u
                six = _coefficients(table, first, rows, column, mask, BLOCK)
                w = six[0] + _combined(six, steps)
                v = scale(w, xs, D1)
                path_sums = sums[path(TABLE, j, p, "number")]
                if hx is not None:
                    path_sums = receive(
                        path_sums, v, has, path(TABLE, j, p, "terms"), D1, path(TABLE, j, p, "d3")
                    )
                    v = add_scaled(scale(_combined(six, changes), xs, D1), w, hxs, D1)
                path_sums = receive(
                    path_sums, v, a, path(TABLE, j, p, "terms"), D1, path(TABLE, j, p, "d3")
                )
                new_sums = new_sums + (path_sums,)
        sums = new_sums

    for j in tl.static_range(length(TABLE)):
        for p in tl.static_range(attr(TABLE, j, "paths")):
            step = channel_step(IR_MUL, path(TABLE, j, p, "d3"))
            row = out_row + path(TABLE, j, p, "out_offset") + u * step
            for m3 in tl.static_range(path(TABLE, j, p, "d3")):
                tl.store(row + m3 * stride, sums[path(TABLE, j, p, "number")][m3], mask=mask)


@kernel("first_row", "rows", "pointers", "edges", "receivers")
def _radial_conv_bwd_kernel(
    dx,  # [N, DIM1]
    da,  # [E, PARTS, DIM2]
    dplace,  # [E, PARTS]
    grad,  # [N, DIM3], packed
    x,  # [N, DIM1]
    hx,  # like x; hx, ha and hplace are None in first order
    edge_attr,  # [E, DIM2]
    ha,
    place,  # [E]
    hplace,
    table,  # [blocks, rows, BLOCK]
    first_row,  # [E]
    rows,
    pointers,  # [N + 1]: the edges of node n are edges[pointers[n] : pointers[n + 1]]
    edges,  # [E]
    receivers,  # [E], of the edges in this order
    STEPS: tl.constexpr,
    SLOPES: tl.constexpr,
    BENDS: tl.constexpr,
    BLOCK: tl.constexpr,
    TABLE: tl.constexpr,
    MUL: tl.constexpr,
    D1: tl.constexpr,
    IN1: tl.constexpr,
    DIM1: tl.constexpr,
    DIM2: tl.constexpr,
    DIM3: tl.constexpr,
    BLOCK_U: tl.constexpr,
    IR_MUL: tl.constexpr,
    PARTS: tl.constexpr,
    FIRST_PART: tl.constexpr,
    ADDS: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask = inside(u, MUL, BLOCK_U)

    at_x = node * DIM1 + IN1 + u * channel_step(IR_MUL, D1)
    stride: tl.constexpr = component_step(IR_MUL, MUL)
    xs = load(x + at_x, D1, stride, mask)
    if hx is not None:
        hxs = load(hx + at_x, D1, stride, mask)
    dxs = load(dx + at_x, D1, stride, mask & ADDS)

    for i in range(tl.load(pointers + node), tl.load(pointers + node + 1)):
        e = tl.load(edges + i)
        at_g = tl.load(receivers + i) * DIM3 + u
        part = e * PARTS + FIRST_PART + tl.program_id(1)
        first, at = tl.load(first_row + e), tl.load(place + e)
        steps, slopes = _polynomials(at, 1.0, STEPS), _polynomials(at, 1.0, SLOPES)
        if hx is not None:
            h = tl.load(hplace + e)
            bends = _polynomials(at, h, BENDS)
        of_place = tl.zeros_like(xs[0])
        sums = ()  # stored at the end of an edge: a store holds back the loads behind it
        for j in tl.static_range(length(TABLE)):
            at_a = e * DIM2 + attr(TABLE, j, "in2_offset")
            a = load_attr(edge_attr + at_a, attr(TABLE, j, "d2"))
            has = None if ha is None else load_attr(ha + at_a, attr(TABLE, j, "d2"))
            das = ()
            for _ in tl.static_range(attr(TABLE, j, "d2")):
                das = das + (tl.zeros_like(xs[0]),)
            for p in tl.static_range(attr(TABLE, j, "paths")):
                column = path(TABLE, j, p, "weight_offset") + u
                six = _coefficients(table, first, rows, column, mask, BLOCK)
                g = load(
                    grad + at_g + path(TABLE, j, p, "out_offset"),
                    path(TABLE, j, p, "d3"), MUL, mask,
                )  # fmt: skip
                w, slope = six[0] + _combined(six, steps), _combined(six, slopes)
                if hx is not None:
                    w2 = slope * h
                    v = add_scaled(scale(w2, xs, D1), w, hxs, D1)
                else:
                    v = scale(w, xs, D1)
                y, y2, das = send(
                    das, v, g, a, has, path(TABLE, j, p, "terms"), D1, attr(TABLE, j, "d2")
                )
                if hx is not None:
                    dxs = add_scaled(add_scaled(dxs, w, y2, D1), w2, y, D1)
                    of_place += (dot(xs, y2, D1) + dot(hxs, y, D1)) * slope
                    of_place += dot(xs, y, D1) * _combined(six, bends)
                else:
                    dxs = add_scaled(dxs, w, y, D1)
                    of_place += dot(xs, y, D1) * slope
            of_block = ()
            for m2 in tl.static_range(attr(TABLE, j, "d2")):
                of_block = of_block + (tl.sum(das[m2]),)
            sums = sums + (of_block,)
        for j in tl.static_range(length(TABLE)):
            for m2 in tl.static_range(attr(TABLE, j, "d2")):
                tl.store(da + part * DIM2 + attr(TABLE, j, "in2_offset") + m2, sums[j][m2])
        tl.store(dplace + part, tl.sum(of_place))

    for m1 in tl.static_range(D1):
        tl.store(dx + at_x + m1 * stride, dxs[m1], mask=mask)


# ---------------------------------------------------------------- launchers


def _receive_all(x, hx, a, ha, place, hplace, table, first_row, order, problem) -> Tensor:
    """The fwd pass, or with directions hx, ha, hplace its second-order form."""
    edges = tuple(t if t is None else t.contiguous() for t in (a, ha, place, hplace))
    table, first_row = table.contiguous(), first_row.contiguous()
    ends = EdgeOrder(order, x.shape[0], a.shape[0])
    out = rows_like(x, problem.dim_out, {(p.out_offset, p.mul * p.d3) for p in problem.paths})
    gathered = packed(x, problem.irreps_in1, problem)
    gathered_h = None if hx is None else packed(hx, problem.irreps_in1, problem)
    for launch in launches(problem, False, hx is not None, x.itemsize, True):
        run(
            _radial_conv_fwd_kernel, (x.shape[0], launch.blocks),
            out, gathered, gathered_h, *edges, table, first_row, table.shape[1],
            ends.dst_ptr, ends.dst_edge, ends.dst_src,
            lanes=LANES, STEPS=STEPS, SLOPES=SLOPES, BLOCK=table.shape[2],
            **constants(launch, problem),
        )  # fmt: skip
    return out


def _send_all(grad, x, hx, a, ha, place, hplace, table, first_row, order, problem):
    """The bwd pass, or with directions hx, ha, hplace its second-order form."""
    x, hx = (t if t is None else t.contiguous() for t in (x, hx))
    edges = tuple(t if t is None else t.contiguous() for t in (a, ha, place, hplace))
    table, first_row = table.contiguous(), first_row.contiguous()
    ends = EdgeOrder(order, x.shape[0], a.shape[0])
    todo = launches(problem, True, hx is not None, x.itemsize, True)
    parts = sum(launch.blocks for launch in todo)
    dx = rows_like(x, problem.dim_in1, {(p.in1_offset, p.mul * p.d1) for p in problem.paths})
    # of zeros where a launch leaves gaps: it writes the columns that its paths read
    covered = all(sum(d2 for _, d2, _ in launch.table) == problem.dim_in2 for launch in todo)
    da = (a.new_empty if covered else a.new_zeros)((a.shape[0], parts, problem.dim_in2))
    dplace = a.new_empty((a.shape[0], parts))
    gathered = packed(grad, problem.irreps_out, problem)
    for launch in todo:
        run(
            _radial_conv_bwd_kernel, (x.shape[0], launch.blocks),
            dx, da, dplace, gathered, x, hx, *edges, table, first_row, table.shape[1],
            ends.src_ptr, ends.src_edge, ends.src_dst,
            PARTS=parts, FIRST_PART=launch.first_part, ADDS=launch.adds,
            lanes=LANES, STEPS=STEPS, SLOPES=SLOPES, BENDS=BENDS, BLOCK=table.shape[2],
            **constants(launch, problem),
        )  # fmt: skip
    if parts == 1:
        return dx, da.flatten(1), dplace
    return dx, da.sum(1), dplace.sum(1, keepdim=True)


def forward(x, edge_attr, place, table, first_row, order, problem: TensorProductProblem) -> Tensor:
    """``out [N, irreps_out.dim]``"""
    return _receive_all(x, None, edge_attr, None, place, None, table, first_row, order, problem)


def backward(grad, x, edge_attr, place, table, first_row, order, problem: TensorProductProblem):
    """``dx, da, dplace``, shaped like x, edge_attr, place."""
    return _send_all(grad, x, None, edge_attr, None, place, None, table, first_row, order, problem)


def double_backward(
    hx, ha, hplace, grad, x, edge_attr, place, table, first_row, order,
    problem: TensorProductProblem,
):  # fmt: skip
    """``gg, gx, ga, gplace``, shaped like grad, x, edge_attr, place."""
    operands = (x, hx, edge_attr, ha, place, hplace, table, first_row, order, problem)
    return _receive_all(*operands), *_send_all(grad, *operands)

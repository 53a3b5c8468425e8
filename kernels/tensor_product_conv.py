"""GPU kernels of tensor_product_conv; fastmlip/ops/tensor_product_conv.py states the formula.

Two passes serve every derivative. A program owns one node and one block of channels and walks the
edges of that node in their fixed order: no atomics, the same bits in every run::

    fwd (receive), over the edges that point to the node, M[m1, m3] = sum_m2 C a[m2]:
        out[m3] += sum_m1 M[m1, m3] w x[m1]
    bwd (send), over the edges that start at the node, z[m1, m2] = sum_m3 C g[m3], g = grad[dst]:
        y[m1] = sum_m2 a[m2] z[m1, m2]
        dx[m1] += w y[m1],   dw = sum_m1 x[m1] y[m1],   da[m2] = sum_{u, m1} w x[m1] z[m1, m2]

Second order (directions hx, ha, hw; M', y' made from ha) replaces ``w x`` by ``w hx + hw x`` and
adds ``M' w x`` to out, ``w y' + hw y`` takes the place of ``w y``, ``x y' + hx y`` of ``x y``.

Rows gathered per edge (x to receive, grad to send) are packed to ``[block][m][mul]`` first, once
per node, so that a warp reads neighbouring channels. One warp a program: the sum of da over
channels needs shuffles only. Programs of other channels and blocks write their own row of
``parts [E, part, irreps_in2.dim]``, which is summed at the end: cheaper in registers than one
program that keeps dx of all channels.
"""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

import torch
import triton.language as tl

from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.problem import TensorProductProblem

from ._channels import add_scaled, channel_step, component_step, dot, inside, load, scale
from ._launches import LANES, constants, launches, rows_like
from ._pack import packed
from ._paths import attr, length, load_attr, path, receive, send
from ._run import kernel, run

Tensor = torch.Tensor

# ---------------------------------------------------------------- kernels


@kernel("pointers", "edges", "senders")
def _tensor_product_conv_fwd_kernel(
    out,  # [N, DIM3]
    x,  # [N, DIM1], packed
    hx,  # like x; hx, ha and hw are None in first order
    edge_attr,  # [E, DIM2]
    ha,
    edge_weight,  # [E, WEIGHTS]
    hw,
    pointers,  # [N + 1]: the edges of node n are edges[pointers[n] : pointers[n + 1]]
    edges,  # [E]
    senders,  # [E], of the edges in this order
    TABLE: tl.constexpr,
    MUL: tl.constexpr,
    D1: tl.constexpr,
    IN1: tl.constexpr,
    DIM1: tl.constexpr,
    DIM2: tl.constexpr,
    DIM3: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BLOCK_U: tl.constexpr,
    IR_MUL: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask = u < MUL  # also where all are: without, the compiler for sm_100 spills in NequIP XL
    out_row = out + node * DIM3

    sums = ()  # of each path: d3 blocks of channels
    for j in tl.static_range(length(TABLE)):
        for p in tl.static_range(attr(TABLE, j, "paths")):
            step = channel_step(IR_MUL, path(TABLE, j, p, "d3"))
            row = out_row + path(TABLE, j, p, "out_offset") + u * step
            earlier = mask & path(TABLE, j, p, "adds")
            stride = component_step(IR_MUL, MUL)
            sums = sums + (load(row, path(TABLE, j, p, "d3"), stride, earlier),)

    for i in range(tl.load(pointers + node), tl.load(pointers + node + 1)):
        e = tl.load(edges + i)
        at_x = tl.load(senders + i) * DIM1 + IN1 + u
        xs = load(x + at_x, D1, MUL, mask)
        if hx is not None:
            hxs = load(hx + at_x, D1, MUL, mask)
        new_sums = ()
        for j in tl.static_range(length(TABLE)):
            at_a = e * DIM2 + attr(TABLE, j, "in2_offset")
            a = load_attr(edge_attr + at_a, attr(TABLE, j, "d2"))
            has = None if ha is None else load_attr(ha + at_a, attr(TABLE, j, "d2"))
            for p in tl.static_range(attr(TABLE, j, "paths")):
                at_w = e * WEIGHTS + path(TABLE, j, p, "weight_offset") + u
                w = tl.load(edge_weight + at_w, mask=mask, other=0.0)
                v = scale(w, xs, D1)
                path_sums = sums[path(TABLE, j, p, "number")]
                if hx is not None:
                    path_sums = receive(
                        path_sums, v, has, path(TABLE, j, p, "terms"), D1, path(TABLE, j, p, "d3")
                    )
                    w2 = tl.load(hw + at_w, mask=mask, other=0.0)
                    v = add_scaled(scale(w2, xs, D1), w, hxs, D1)
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
                at = row + m3 * component_step(IR_MUL, MUL)
                tl.store(at, sums[path(TABLE, j, p, "number")][m3], mask=mask)


@kernel("pointers", "edges", "receivers")
def _tensor_product_conv_bwd_kernel(
    dx,  # [N, DIM1]
    da,  # [E, PARTS, DIM2]
    dw,  # [E, WEIGHTS]
    grad,  # [N, DIM3], packed
    x,  # [N, DIM1]
    hx,  # like x; hx, ha and hw are None in first order
    edge_attr,  # [E, DIM2]
    ha,
    edge_weight,  # [E, WEIGHTS]
    hw,
    pointers,  # [N + 1]: the edges of node n are edges[pointers[n] : pointers[n + 1]]
    edges,  # [E]
    receivers,  # [E], of the edges in this order
    TABLE: tl.constexpr,
    MUL: tl.constexpr,
    D1: tl.constexpr,
    IN1: tl.constexpr,
    DIM1: tl.constexpr,
    DIM2: tl.constexpr,
    DIM3: tl.constexpr,
    WEIGHTS: tl.constexpr,
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
        part = da + (e * PARTS + FIRST_PART + tl.program_id(1)) * DIM2
        dws, sums = (), ()  # stored at the end of an edge: a store holds back the loads behind it
        for j in tl.static_range(length(TABLE)):
            at_a = e * DIM2 + attr(TABLE, j, "in2_offset")
            a = load_attr(edge_attr + at_a, attr(TABLE, j, "d2"))
            has = None if ha is None else load_attr(ha + at_a, attr(TABLE, j, "d2"))
            das = ()
            for _ in tl.static_range(attr(TABLE, j, "d2")):
                das = das + (tl.zeros_like(xs[0]),)
            for p in tl.static_range(attr(TABLE, j, "paths")):
                at_w = e * WEIGHTS + path(TABLE, j, p, "weight_offset") + u
                w = tl.load(edge_weight + at_w, mask=mask, other=0.0)
                g = load(
                    grad + at_g + path(TABLE, j, p, "out_offset"),
                    path(TABLE, j, p, "d3"), MUL, mask,
                )  # fmt: skip
                if hx is not None:
                    w2 = tl.load(hw + at_w, mask=mask, other=0.0)
                    v = add_scaled(scale(w2, xs, D1), w, hxs, D1)
                else:
                    v = scale(w, xs, D1)
                y, y2, das = send(
                    das, v, g, a, has, path(TABLE, j, p, "terms"), D1, attr(TABLE, j, "d2")
                )
                if hx is not None:
                    dxs = add_scaled(add_scaled(dxs, w, y2, D1), w2, y, D1)
                    dws = dws + (dot(xs, y2, D1) + dot(hxs, y, D1),)
                else:
                    dxs = add_scaled(dxs, w, y, D1)
                    dws = dws + (dot(xs, y, D1),)
            of_block = ()
            for m2 in tl.static_range(attr(TABLE, j, "d2")):
                of_block = of_block + (tl.sum(das[m2]),)
            sums = sums + (of_block,)
        for j in tl.static_range(length(TABLE)):
            for p in tl.static_range(attr(TABLE, j, "paths")):
                at_w = e * WEIGHTS + path(TABLE, j, p, "weight_offset") + u
                tl.store(dw + at_w, dws[path(TABLE, j, p, "number")], mask=mask)
            for m2 in tl.static_range(attr(TABLE, j, "d2")):
                tl.store(part + attr(TABLE, j, "in2_offset") + m2, sums[j][m2])

    for m1 in tl.static_range(D1):
        tl.store(dx + at_x + m1 * stride, dxs[m1], mask=mask)


# ---------------------------------------------------------------- launchers


def _receive_all(x, hx, a, ha, w, hw, order, problem) -> Tensor:
    """The fwd pass, or with directions hx, ha, hw its second-order form."""
    a, ha, w, hw = (t if t is None else t.contiguous() for t in (a, ha, w, hw))
    ends = EdgeOrder(order, x.shape[0], a.shape[0])
    out = rows_like(x, problem.dim_out, {(p.out_offset, p.mul * p.d3) for p in problem.paths})
    gathered = packed(x, problem.irreps_in1, problem)
    gathered_h = None if hx is None else packed(hx, problem.irreps_in1, problem)
    for launch in launches(problem, False, hx is not None, x.itemsize):
        run(
            _tensor_product_conv_fwd_kernel, (x.shape[0], launch.blocks),
            out, gathered, gathered_h, a, ha, w, hw, ends.dst_ptr, ends.dst_edge, ends.dst_src,
            lanes=LANES, WEIGHTS=problem.weight_numel, **constants(launch, problem),
        )  # fmt: skip
    return out


def _send_all(grad, x, hx, a, ha, w, hw, order, problem) -> tuple[Tensor, Tensor, Tensor]:
    """The bwd pass, or with directions hx, ha, hw its second-order form."""
    x, hx, a, ha, w, hw = (t if t is None else t.contiguous() for t in (x, hx, a, ha, w, hw))
    ends = EdgeOrder(order, x.shape[0], a.shape[0])
    todo = launches(problem, True, hx is not None, x.itemsize)
    parts = sum(launch.blocks for launch in todo)
    dx = rows_like(x, problem.dim_in1, {(p.in1_offset, p.mul * p.d1) for p in problem.paths})
    # of zeros where a launch leaves gaps: it writes the columns that its paths read
    covered = all(sum(d2 for _, d2, _ in launch.table) == problem.dim_in2 for launch in todo)
    da = (a.new_empty if covered else a.new_zeros)((a.shape[0], parts, problem.dim_in2))
    dw = torch.empty_like(w)
    gathered = packed(grad, problem.irreps_out, problem)
    for launch in todo:
        run(
            _tensor_product_conv_bwd_kernel, (x.shape[0], launch.blocks),
            dx, da, dw, gathered, x, hx, a, ha, w, hw, ends.src_ptr, ends.src_edge, ends.src_dst,
            PARTS=parts, FIRST_PART=launch.first_part, ADDS=launch.adds,
            lanes=LANES, WEIGHTS=problem.weight_numel, **constants(launch, problem),
        )  # fmt: skip
    return dx, da.flatten(1) if parts == 1 else da.sum(1), dw


def forward(x, edge_attr, edge_weight, order, problem: TensorProductProblem) -> Tensor:
    """``out [N, irreps_out.dim]``"""
    return _receive_all(x, None, edge_attr, None, edge_weight, None, order, problem)


def backward(grad, x, edge_attr, edge_weight, order, problem: TensorProductProblem):
    """``dx, da, dw``, shaped like x, edge_attr, edge_weight."""
    return _send_all(grad, x, None, edge_attr, None, edge_weight, None, order, problem)


def double_backward(
    hx, ha, hw, grad, x, edge_attr, edge_weight, order, problem: TensorProductProblem
):
    """``gg, gx, ga, gw``, shaped like grad, x, edge_attr, edge_weight."""
    gg = _receive_all(x, hx, edge_attr, ha, edge_weight, hw, order, problem)
    return gg, *_send_all(grad, x, hx, edge_attr, ha, edge_weight, hw, order, problem)

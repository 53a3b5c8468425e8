"""GPU kernels of contraction; fastmlip/ops/contraction.py states the formula.

With terms C of path p, components i of x, j of env, k of out, and we[p, j] = weight[p] env[n, j]::

    edges, out from x:     out[k] += sum C x[i] we[p, j]
    edges, dx from grad:   dx[i] += sum C g[k] we[p, j]
    nodes, over the edges of a centre, z[p, j] = sum C x[i] g[k]:
        denv[j] += weight[p] z[p, j],   dweight[p] += sum_j env[j] z[p, j]

A program owns an edge, or a node whose edges it walks in their fixed order, and a block of
channels. No atomics: the same bits in every run; gradients of weights are summed over nodes at the
end.
Second order, with directions hx, henv, hw, takes for each product the sum of those in which one
factor is replaced by its direction. One launch serves one block of the irreps that it writes.
"""

# ruff: noqa: RUF005 (Triton has no (*values, x) inside kernels)
from __future__ import annotations

from functools import cache
from itertools import groupby
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.problem import TensorProductProblem

from ._channels import add_scaled, dot, inside, load, scale
from ._launches import LANES, MAX_TERMS, Table
from ._run import kernel, run

Tensor = torch.Tensor

# ---------------------------------------------------------------- tables


class Launch(NamedTuple):
    """``table`` has a row of each path: ``(offset and dimension of the first operand, and of the
    second, number, terms)``, with ``terms[m] = ((m of the first, m of the second, C), ...)`` for
    each component m of the block that is written, at ``offset``."""

    table: Table
    offset: int
    dim: int
    adds: bool  # to what an earlier launch wrote


# axes of a term (i, j, k): what is written, first and second operand
OUT, DX, DENV = (2, 0, 1), (0, 2, 1), (1, 0, 2)


@cache
def _launches(
    problem: TensorProductProblem, axes: tuple[int, int, int], max_terms: int
) -> tuple[Launch, ...]:
    def block(path, axis: int) -> tuple[int, int]:
        offsets = (path.in1_offset, path.in2_offset, path.out_offset)
        return offsets[axis], (path.d1, path.d2, path.d3)[axis]

    numbered = sorted(enumerate(problem.paths), key=lambda row: block(row[1], axes[0]))
    launches = []
    for (offset, dim), group in groupby(numbered, key=lambda row: block(row[1], axes[0])):
        rows, size, adds = [], 0, False
        for number, path in group:
            if rows and size + len(path.cg) > max_terms:
                launches.append(Launch(Table(rows), offset, dim, adds))
                rows, size, adds = [], 0, True
            terms: list[list] = [[] for _ in range(dim)]
            for *m, value in path.cg:
                terms[m[axes[0]]].append((m[axes[1]], m[axes[2]], value))
            first, second = block(path, axes[1]), block(path, axes[2])
            rows.append((*first, *second, number, tuple(tuple(t) for t in terms)))
            size += len(path.cg)
        launches.append(Launch(Table(rows), offset, dim, adds))
    return tuple(launches)


@triton.constexpr_function
def _length(table):
    return len(table)


@triton.constexpr_function
def _row(table, p, field):
    return table[p][{"first": 0, "d1": 1, "second": 2, "d2": 3, "number": 4, "terms": 5}[field]]


@triton.constexpr_function
def _count(terms, m):
    return len(terms[m])


@triton.constexpr_function
def _term(terms, m, t, field):
    return terms[m][t][field]


# ---------------------------------------------------------------- one path of one edge


@triton.jit
def _contract(sums, x, y, terms: tl.constexpr, dim: tl.constexpr):
    """``sums[m] + sum over terms C x[i] y[j]``."""
    new_sums = ()
    for m in tl.static_range(dim):
        total = sums[m]
        for t in tl.static_range(_count(terms, m)):
            total += x[_term(terms, m, t, 0)] * y[_term(terms, m, t, 1)] * _term(terms, m, t, 2)
        new_sums = new_sums + (total,)
    return new_sums


# ---------------------------------------------------------------- kernels


@kernel("edges", "centres")
def _contraction_edges_kernel(
    out,  # [E, DIM_OUT, U]
    x,  # [E, DIM_IN, U]
    hx,  # like x, or None: without a direction
    env,  # [N, DIM_ENV, U]
    henv,  # like env; henv and hw are None in first order
    weight,  # [paths, U]
    hw,
    edges,  # [E], in some order
    centres,  # [E], of the edges in this order
    TABLE: tl.constexpr,
    OFFSET: tl.constexpr,
    DIM: tl.constexpr,
    ADDS: tl.constexpr,
    DIM_OUT: tl.constexpr,
    DIM_IN: tl.constexpr,
    DIM_ENV: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    e, node = tl.load(edges + i), tl.load(centres + i)
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask = inside(u, U, BLOCK_U)
    at_out = out + (e * DIM_OUT + OFFSET) * U + u
    sums = load(at_out, DIM, U, mask & ADDS)
    for p in tl.static_range(_length(TABLE)):
        at_x = (e * DIM_IN + _row(TABLE, p, "first")) * U + u
        at_env = (node * DIM_ENV + _row(TABLE, p, "second")) * U + u
        at_w = _row(TABLE, p, "number") * U + u
        xs = load(x + at_x, _row(TABLE, p, "d1"), U, mask)
        envs = load(env + at_env, _row(TABLE, p, "d2"), U, mask)
        w = tl.load(weight + at_w, mask=mask, other=0.0)
        if henv is not None:
            henvs = load(henv + at_env, _row(TABLE, p, "d2"), U, mask)
            w2 = tl.load(hw + at_w, mask=mask, other=0.0)
            we2 = add_scaled(scale(w, henvs, _row(TABLE, p, "d2")), w2, envs, _row(TABLE, p, "d2"))
            sums = _contract(sums, xs, we2, _row(TABLE, p, "terms"), DIM)
            if hx is not None:
                hxs = load(hx + at_x, _row(TABLE, p, "d1"), U, mask)
                we = scale(w, envs, _row(TABLE, p, "d2"))
                sums = _contract(sums, hxs, we, _row(TABLE, p, "terms"), DIM)
        else:
            we = scale(w, envs, _row(TABLE, p, "d2"))
            sums = _contract(sums, xs, we, _row(TABLE, p, "terms"), DIM)
    for m in tl.static_range(DIM):
        tl.store(at_out + m * U, sums[m], mask=mask)


@kernel("pointers", "edges")
def _contraction_nodes_kernel(
    denv,  # [N, DIM_ENV, U]
    dweight,  # [N, paths, U]: of each node
    x,  # [E, DIM_X, U]
    hx,  # like x; hx, henv and hw are None in first order
    grad,  # [E, DIM_GRAD, U]
    env,  # [N, DIM_ENV, U]
    henv,
    weight,  # [paths, U]
    hw,
    pointers,  # [N + 1]: the edges of node n are edges[pointers[n] : pointers[n + 1]]
    edges,  # [E]
    TABLE: tl.constexpr,
    OFFSET: tl.constexpr,
    DIM: tl.constexpr,
    ADDS: tl.constexpr,
    DIM_X: tl.constexpr,
    DIM_GRAD: tl.constexpr,
    DIM_ENV: tl.constexpr,
    PATHS: tl.constexpr,
    U: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask = inside(u, U, BLOCK_U)
    at_env = (node * DIM_ENV + OFFSET) * U + u
    denvs, none = load(denv + at_env, DIM, U, mask & ADDS), ()
    envs = load(env + at_env, DIM, U, mask)
    if hx is not None:
        henvs = load(henv + at_env, DIM, U, mask)
    for _ in tl.static_range(DIM):
        none = none + (tl.zeros((BLOCK_U,), denv.dtype.element_ty),)
    dws = ()
    for _ in tl.static_range(_length(TABLE)):
        dws = dws + (tl.zeros((BLOCK_U,), denv.dtype.element_ty),)

    for i in range(tl.load(pointers + node), tl.load(pointers + node + 1)):
        e = tl.load(edges + i)
        new_dws = ()
        for p in tl.static_range(_length(TABLE)):
            at_x = (e * DIM_X + _row(TABLE, p, "first")) * U + u
            at_g = (e * DIM_GRAD + _row(TABLE, p, "second")) * U + u
            w = tl.load(weight + _row(TABLE, p, "number") * U + u, mask=mask, other=0.0)
            xs = load(x + at_x, _row(TABLE, p, "d1"), U, mask)
            g = load(grad + at_g, _row(TABLE, p, "d2"), U, mask)
            z = _contract(none, xs, g, _row(TABLE, p, "terms"), DIM)
            if hx is not None:
                w2 = tl.load(hw + _row(TABLE, p, "number") * U + u, mask=mask, other=0.0)
                hxs = load(hx + at_x, _row(TABLE, p, "d1"), U, mask)
                z2 = _contract(none, hxs, g, _row(TABLE, p, "terms"), DIM)
                denvs = add_scaled(add_scaled(denvs, w2, z, DIM), w, z2, DIM)
                new_dws = new_dws + (dws[p] + dot(henvs, z, DIM) + dot(envs, z2, DIM),)
            else:
                denvs = add_scaled(denvs, w, z, DIM)
                new_dws = new_dws + (dws[p] + dot(envs, z, DIM),)
        dws = new_dws

    for m in tl.static_range(DIM):
        tl.store(denv + at_env + m * U, denvs[m], mask=mask)
    for p in tl.static_range(_length(TABLE)):
        at = (node * PATHS + _row(TABLE, p, "number")) * U + u
        tl.store(dweight + at, dws[p], mask=mask)


# ---------------------------------------------------------------- launchers


def _rows(count: int, dim: int, like: Tensor, launches: tuple[Launch, ...]) -> Tensor:
    """``[count, dim, U]``, of zeros where the launches leave gaps."""
    covered = sum(launch.dim for launch in launches if not launch.adds) == dim
    return (like.new_empty if covered else like.new_zeros)((count, dim, like.shape[-1]))


def _constants(launch: Launch, channels: int) -> dict:
    return {
        "TABLE": launch.table, "OFFSET": launch.offset, "DIM": launch.dim, "ADDS": launch.adds,
        "U": channels, "BLOCK_U": LANES,
    }  # fmt: skip


def _edges(axes, dim_out, x, hx, env, henv, weight, hw, order, problem) -> Tensor:
    edges, dim_in, channels = x.shape
    launches = _launches(problem, axes, MAX_TERMS)
    out = _rows(edges, dim_out, x, launches)
    ends = EdgeOrder(order, env.shape[0], edges)
    for launch in launches:
        run(
            _contraction_edges_kernel, (edges, -(-channels // LANES)),
            out, x, hx, env, henv, weight, hw, ends.src_edge, ends.src_dst, lanes=LANES,
            DIM_OUT=dim_out, DIM_IN=dim_in, DIM_ENV=env.shape[1], **_constants(launch, channels),
        )  # fmt: skip
    return out


def _nodes(x, hx, grad, env, henv, weight, hw, order, problem) -> tuple[Tensor, Tensor]:
    (edges, dim_x, channels), (nodes, dim_env, _) = x.shape, env.shape
    # in second order z lives twice: with more terms the compiler for sm_100 spills some
    launches = _launches(problem, DENV, MAX_TERMS if hx is None else MAX_TERMS // 4)
    denv = _rows(nodes, dim_env, env, launches)
    dweight = weight.new_empty((nodes, *weight.shape))
    ends = EdgeOrder(order, nodes, edges)
    for launch in launches:
        run(
            _contraction_nodes_kernel, (nodes, -(-channels // LANES)),
            denv, dweight, x, hx, grad, env, henv, weight, hw, ends.dst_ptr, ends.dst_edge,
            lanes=LANES, DIM_X=dim_x, DIM_GRAD=grad.shape[1], DIM_ENV=dim_env,
            PATHS=weight.shape[0], **_constants(launch, channels),
        )  # fmt: skip
    return denv, dweight.sum(0)


def forward(x, env, weight, order, problem) -> Tensor:
    """``[E, dim_out, U]``."""
    x, env, weight = (t.contiguous() for t in (x, env, weight))
    return _edges(OUT, problem.dim_out, x, None, env, None, weight, None, order, problem)


def backward(grad, x, env, weight, order, problem) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, env and weight."""
    grad, x, env, weight = (t.contiguous() for t in (grad, x, env, weight))
    dx = _edges(DX, problem.dim_in1, grad, None, env, None, weight, None, order, problem)
    return dx, *_nodes(x, None, grad, env, None, weight, None, order, problem)


def double_backward(
    hx, henv, hw, grad, x, env, weight, order, problem
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of grad, x, env and weight."""
    operands = (t.contiguous() for t in (hx, henv, hw, grad, x, env, weight))
    hx, henv, hw, grad, x, env, weight = operands
    gg = _edges(OUT, problem.dim_out, x, hx, env, henv, weight, hw, order, problem)
    gx = _edges(DX, problem.dim_in1, grad, None, env, henv, weight, hw, order, problem)
    return gg, gx, *_nodes(x, hx, grad, env, henv, weight, hw, order, problem)

"""Tensor products of edges with the environment of their centre: Allegro's ``Contracter``.

For every path p = (irreps of x, env, out) with Clebsch-Gordan (real Wigner 3j) symbols C_p, which
hold the path's coefficient, channels u and components i, j, k::

    M[n, i, k, u] = sum over p, j of weight[p, u] * C_p[i, j, k] * env[n, j, u]
    out[e, k, u] = sum over i of x[e, i, u] * M[edge_dst[e], i, k, u]

All edges of a centre share its M, which is made once in cache, from the nonzero C_p alone. Allegro
holds ``ww3j[u, i, j, k] = sum_p weight[p, u] C_p[i, j, k]`` and makes the product with x and env
edge by edge, ``[E, U, i, j, k]``. Its layout has the channels in front; here they are innermost, so
that neighbours in memory do the same.

With ``edge_attr``, x is given by its factors and never made, ``x`` being their weights::

    x[e, l(i), u] * edge_attr[e, i]   in place of   x[e, i, u],    l(i) the irrep of component i

L(x, a, v, w, g) = <g, out(x, a, v, w)> is linear in each of x, a = edge_attr, v = env, w = weight
and g; its derivatives are those of :mod:`fastmlip.ops.multilinear`. Sums over edges and nodes run
in a fixed order: the same bits in every run and for any number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from e3nn.o3 import Irreps

from fastmlip import backend
from fastmlip.backend import FLOATS
from fastmlip.ops.edge_order import EdgeOrder, assert_in_range, check_order, edge_order
from fastmlip.ops.multilinear import multilinear_ladder
from fastmlip.problem import TensorProductProblem

Tensor = torch.Tensor


def strided_problem(
    irreps_in1: Any, irreps_in2: Any, irreps_out: Any, irrep_normalization: str = "component"
) -> TensorProductProblem:
    """The problem that has all paths between these irreps, in the order of Allegro's weights.

    A path's coefficient is the square root of its output's dimension (``component``) or 1
    (``none``); multiplicities, which must be one, are those of a channel.
    """
    in1, in2, out = Irreps(irreps_in1), Irreps(irreps_in2), Irreps(irreps_out)
    paths = [
        (i, j, k, "uvu", True)
        for k, (_, ir_out) in enumerate(out)
        for i, (_, ir1) in enumerate(in1)
        for j, (_, ir2) in enumerate(in2)
        if ir_out in ir1 * ir2
    ]
    return TensorProductProblem.from_instructions(in1, in2, out, paths, irrep_normalization, "none")


def contraction(
    x: Tensor,
    env: Tensor,
    weight: Tensor,
    edge_dst: Tensor,
    problem: TensorProductProblem,
    edge_attr: Tensor | None = None,
    tables: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """The product of this page, ``[E, irreps_out.dim, U]``.

    Args:
        x: ``[E, irreps_in1.dim, U]``, float32 or float64; with ``edge_attr`` its weights, ``[E,
            irreps of irreps_in1, U]``, or ``[E, 1, U]`` where one serves all irreps.
        env: ``[N, irreps_in2.dim, U]``, dtype of ``x``.
        weight: ``[paths, U]``, dtype of ``x``.
        edge_dst: centres ``[E]``, int32 or int64, in ``[0, N)``, in any order.
        problem: irreps and paths, every multiplicity one.
        edge_attr: ``[E, irreps_in1.dim]``, dtype of ``x``.
        tables: ``problem.tables()``, where the caller keeps it.
        order: :func:`fastmlip.ops.edge_order` of the edges, where the caller keeps it; its senders
            do not matter.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: an index out of range.

    """
    _check(x, env, weight, edge_dst, problem, edge_attr)
    where = backend.choose(x)
    if where == "reference" or (where == "triton" and order is None):
        assert_in_range(edge_dst, "edge_dst", env.shape[0], "env.size(0)")
    if where == "reference":
        return reference(x, env, weight, edge_dst, problem, edge_attr)
    if order is None:
        order = edge_order(edge_dst, edge_dst, env.shape[0])
    elif where == "triton":  # C++ looks itself
        check_order(order, env.shape[0], edge_dst.shape[0], x.device)
    elif order.shape != (EdgeOrder.size(env.shape[0], edge_dst.shape[0]),):
        raise ValueError(f"order: not the edge_order of these edges, got {tuple(order.shape)}")
    if where == "triton":
        return _TRITON["forward"](
            _of_factors(x, edge_attr, problem), env, weight, order, problem.key
        )
    if edge_attr is None:
        edge_attr = x.new_empty(x.shape[0], 0)
    if tables is None:
        tables = problem.tables()
    return _CPP["forward"](x, edge_attr, env, weight, order, tables, problem.dim_out)


def _check(x, env, weight, edge_dst, problem, edge_attr) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    if edge_dst.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"edge_dst: expected int32 or int64, got {edge_dst.dtype}")
    if edge_dst.dim() != 1:
        raise ValueError(f"edge_dst: expected shape [E], got {tuple(edge_dst.shape)}")
    irreps = problem.irreps_in1.count("+") + 1
    rows = (problem.dim_in1,) if edge_attr is None else (1, irreps)
    if x.dim() != 3 or x.shape[1] not in rows:
        known = " or ".join(str(n) for n in rows)
        raise ValueError(f"x: expected shape [E, {known}, U], got {tuple(x.shape)}")
    edges, _, channels = x.shape
    if edge_dst.shape[0] != edges:
        raise ValueError(f"x: expected E = {edge_dst.shape[0]} rows as in edge_dst, got {edges}")
    wanted = {"weight": (weight, (problem.weight_numel, channels), "[paths, U]")}
    if edge_attr is not None:
        wanted["edge_attr"] = (edge_attr, (edges, problem.dim_in1), "[E, irreps_in1.dim]")
    nodes = env.shape[:1]
    wanted["env"] = (env, (*nodes, problem.dim_in2, channels), "[N, irreps_in2.dim, U]")
    for name, (value, shape, meaning) in wanted.items():
        if tuple(value.shape) != shape:
            raise ValueError(f"{name}: expected shape {meaning}, {shape}, got {tuple(value.shape)}")
        if value.dtype != x.dtype:
            raise TypeError(f"{name}: expected {x.dtype} as x has, got {value.dtype}")
    for name, value in (("env", env), ("weight", weight), ("edge_attr", edge_attr),
                        ("edge_dst", edge_dst)):  # fmt: skip
        if value is not None and value.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x has, got {value.device}")


def reference(
    x: Tensor,
    env: Tensor,
    weight: Tensor,
    edge_dst: Tensor,
    problem: TensorProductProblem,
    edge_attr: Tensor | None = None,
) -> Tensor:
    """The formula of this page, as Allegro has it, path by path; differentiable to any order."""
    x = _of_factors(x, edge_attr, problem)
    env = env.index_select(0, edge_dst.long())
    out = x.new_zeros(x.shape[0], problem.dim_out, x.shape[2])
    for number, p in enumerate(problem.paths):
        w3j = x.new_zeros(p.d1, p.d2, p.d3)
        for i, j, k, value in p.cg:
            w3j[i, j, k] = value
        left = x[:, p.in1_offset : p.in1_offset + p.d1]
        right = env[:, p.in2_offset : p.in2_offset + p.d2]
        columns = torch.einsum("ijk,eiu,eju,u->eku", w3j, left, right, weight[number])
        end = problem.dim_out - p.out_offset - p.d3
        out = out + torch.nn.functional.pad(columns, (0, 0, p.out_offset, end))
    return out


def _of_factors(x: Tensor, edge_attr: Tensor | None, problem: TensorProductProblem) -> Tensor:
    """``[E, irreps_in1.dim, U]``, the product where factors are given."""
    if edge_attr is None:
        return x
    if x.shape[1] != 1:  # without a tensor of counts, for which a GPU would wait
        dims = (block.ir.dim for block in Irreps(problem.irreps_in1))
        x = torch.cat([x[:, i : i + 1].expand(-1, d, -1) for i, d in enumerate(dims)], 1)
    return x * edge_attr.unsqueeze(2)


# ---------------------------------------------------------------- the operators


@backend.triton_op("fastmlip::contraction", mutates_args=())
def _forward(x: Tensor, env: Tensor, weight: Tensor, order: Tensor, problem: str) -> Tensor:
    from fastmlip.kernels import contraction as kernels

    return kernels.forward(x, env, weight, order, TensorProductProblem.from_key(problem))


@backend.triton_op("fastmlip::contraction_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, env: Tensor, weight: Tensor, order: Tensor, problem: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, env, weight."""
    from fastmlip.kernels import contraction as kernels

    return kernels.backward(grad, x, env, weight, order, TensorProductProblem.from_key(problem))


@backend.triton_op("fastmlip::contraction_double_backward", mutates_args=())
def _double_backward(
    hx: Tensor, henv: Tensor, hweight: Tensor, grad: Tensor, x: Tensor, env: Tensor,
    weight: Tensor, order: Tensor, problem: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to grad, x, env, weight."""
    from fastmlip.kernels import contraction as kernels

    operands = hx, henv, hweight, grad, x, env, weight, order
    return kernels.double_backward(*operands, TensorProductProblem.from_key(problem))


_TRITON = multilinear_ladder("contraction", 3)

if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::contraction_cpu")
    def _(x, edge_attr, env, weight, order, tables, dim_out):
        return x.new_empty((x.shape[0], dim_out, x.shape[2]))

    def _like(*tensors):
        return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)

    @torch.library.register_fake("fastmlip::contraction_backward_cpu")
    def _(grad, x, edge_attr, env, weight, order, tables, dim_out):
        return _like(x, edge_attr, env, weight)

    @torch.library.register_fake("fastmlip::contraction_double_backward_cpu")
    def _(hx, ha, henv, hweight, grad, x, edge_attr, env, weight, order, tables, dim_out):
        return _like(grad, x, edge_attr, env, weight)

    _CPP = multilinear_ladder("contraction_cpu", 4)

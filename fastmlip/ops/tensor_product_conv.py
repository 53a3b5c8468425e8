"""Tensor product of node features with edge attributes, weighted per edge, summed per receiver.

For every path p = (i, j, k) with coefficient c_p and Clebsch-Gordan (real Wigner 3j) symbols C_p::

    out[n, u, m3] += sum over edges e with edge_dst[e] = n:
        edge_weight[e, p, u] * c_p * sum_{m1, m2} C_p[m1, m2, m3]
            * x[edge_src[e], u, m1] * edge_attr[e, m2]

This is e3nn's ``TensorProduct`` with ``uvu`` instructions and ``shared_weights=False`` on
``x[edge_src]``, followed by a sum over ``edge_dst``, and it never builds an ``[E, irreps_out]``
tensor. With L(x, a, w, g) = <g, out(x, a, w)>, linear in each of x, a = edge_attr, w = edge_weight
and g, every derivative is a sum of partial derivatives of L::

    backward         dL/dx, dL/da, dL/dw
    double backward  d/d(x, a, w, g) of  L(hx, a, w, g) + L(x, ha, w, g) + L(x, a, hw, g)
    beyond           composed of the two above and the forward

Each rung is an operator with a fake and an autograd formula that calls the next rung. The C++
operators of ``csrc/torch/tensor_product_conv.cpp`` and the Triton operators of this page share the
formulas; the reference is differentiated by torch. Sums over edges run in the fixed order of
:mod:`fastmlip.ops.edge_order`: the result is the same bits in every run and for any number of
threads.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch

from fastmlip import backend, layout
from fastmlip.backend import FLOATS
from fastmlip.ops.edge_order import check_edges, check_order, check_range, edge_order
from fastmlip.ops.ladder import Rung, eager, ladder, on_cpu
from fastmlip.problem import TensorProductProblem

Tensor = torch.Tensor


def tensor_product_conv(
    x: Tensor,
    edge_attr: Tensor,
    edge_weight: Tensor,
    edge_dst: Tensor,
    edge_src: Tensor,
    problem: TensorProductProblem,
    tables: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """The convolution of this page: ``[N, irreps_out.dim]`` in ``problem.layout``.

    Args:
        x: node features ``[N, irreps_in1.dim]`` in ``problem.layout``, float32 or float64.
        edge_attr: ``[E, irreps_in2.dim]``, dtype of ``x``.
        edge_weight: ``[E, problem.weight_numel]``, dtype of ``x``.
        edge_dst: receivers ``[E]``, int32 or int64, in ``[0, N)``, in any order.
        edge_src: senders ``[E]``, likewise.
        problem: irreps and instructions.
        tables: ``problem.tables()`` on the device of ``x``, where the caller keeps it.
        order: :func:`fastmlip.ops.edge_order` of the edges, where the caller keeps it.

    Under autocast the operands may differ in dtype: the sum runs in their common dtype, at least
    float32, and the result has the dtype that NequIP's own layer gives, float32 for a half ``x``.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: an index out of range.
    """
    which = backend.choose(x)
    alike = x.dtype in FLOATS and x.dtype is edge_attr.dtype is edge_weight.dtype
    operands = (x, edge_attr, edge_weight, edge_dst, edge_src)
    if which == "cpp" and alike and eager() and on_cpu(*operands, tables, order):
        try:
            return _call_cpp(*operands, problem, tables, order)
        except (RuntimeError, IndexError):  # C++ checks what it takes
            _check(*operands, problem)  # has the better error
            raise
    _check(*operands, problem)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if torch.is_autocast_enabled(x.device.type):
        common = torch.promote_types(
            x.dtype, torch.promote_types(edge_attr.dtype, edge_weight.dtype)
        )
        common = torch.promote_types(common, torch.float32)
        x, edge_attr, edge_weight = x.to(common), edge_attr.to(common), edge_weight.to(common)
    if which == "reference":
        check_range(edge_dst, edge_src, x.shape[0])
        out = reference(x, edge_attr, edge_weight, edge_dst, edge_src, problem)
    elif which == "cpp":
        out = _call_cpp(x, edge_attr, edge_weight, edge_dst, edge_src, problem, tables, order)
    else:
        out = _call_triton(x, edge_attr, edge_weight, edge_dst, edge_src, problem, tables, order)
    return out.to(dtype)


def _call_cpp(x, edge_attr, edge_weight, edge_dst, edge_src, problem, tables, order) -> Tensor:
    if tables is None:
        tables = problem.tables()
    if order is None:
        order = edge_order(edge_dst, edge_src, x.shape[0])
    return _CPP["forward"](x, edge_attr, edge_weight, order, tables, problem.dim_out)


def _call_triton(x, edge_attr, edge_weight, edge_dst, edge_src, problem, tables, order) -> Tensor:
    if tables is None:
        tables = problem.tables().to(x.device)
    if order is None:
        order = edge_order(edge_dst, edge_src, x.shape[0])
    else:
        check_order(order, x.shape[0], edge_dst.shape[0], x.device)
    return _TRITON["forward"](x, edge_attr, edge_weight, order, tables, problem.key)


def _check(x, edge_attr, edge_weight, edge_dst, edge_src, problem) -> None:
    for name, value, columns, meaning in (
        ("x", x, problem.dim_in1, "[N, irreps_in1.dim]"),
        ("edge_attr", edge_attr, problem.dim_in2, "[E, irreps_in2.dim]"),
        ("edge_weight", edge_weight, problem.weight_numel, "[E, weight_numel]"),
    ):
        if value.dim() != 2 or value.shape[1] != columns:
            raise ValueError(
                f"{name}: expected shape {meaning} with {columns} columns, got {tuple(value.shape)}"
            )
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
    for name, value in (("edge_attr", edge_attr), ("edge_weight", edge_weight)):
        if value.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x has, got {value.device}")
    check_edges(edge_dst, edge_src, x, "x")
    for name, value in (("edge_attr", edge_attr), ("edge_weight", edge_weight)):
        if value.shape[0] != edge_dst.shape[0]:
            raise ValueError(
                f"{name}: expected E = {edge_dst.shape[0]} rows as in edge_dst, got "
                f"{value.shape[0]}"
            )
    if torch.is_autocast_enabled(x.device.type):
        return
    if x.dtype not in FLOATS:
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    for name, value in (("edge_attr", edge_attr), ("edge_weight", edge_weight)):
        if value.dtype != x.dtype:
            raise TypeError(f"{name}: expected {x.dtype} as x has, got {value.dtype}")


# ---------------------------------------------------------------- reference, in plain PyTorch


def reference(
    x: Tensor,
    edge_attr: Tensor,
    edge_weight: Tensor,
    edge_dst: Tensor,
    edge_src: Tensor,
    problem: TensorProductProblem,
) -> Tensor:
    """The formula of this page as einsums; differentiable by torch's own autograd to any order."""
    x = x if problem.layout == "mul_ir" else layout.to_mul_ir(x, problem.irreps_in1)
    out = x.new_zeros(x.shape[0], problem.dim_out)
    for p, xs, a, w, cg in _paths(x, edge_attr, edge_weight, problem):
        message = torch.einsum("abc,eua,eb,eu->euc", cg, xs[edge_src.long()], a, w)
        columns = slice(p.out_offset, p.out_offset + p.mul * p.d3)
        out[:, columns] = out[:, columns].index_add(0, edge_dst.long(), message.flatten(1))
    return out if problem.layout == "mul_ir" else layout.to_ir_mul(out, problem.irreps_out)


def _paths(x, edge_attr, edge_weight, problem):
    """Per path: itself, blocks ``[*, mul, d1]``, ``[E, d2]``, ``[E, mul]``, and dense c_p C_p."""
    for p in problem.paths:
        cg = [[[0.0] * p.d3 for _ in range(p.d2)] for _ in range(p.d1)]
        for m1, m2, m3, c in p.cg:
            cg[m1][m2][m3] = c
        xs = x[:, p.in1_offset : p.in1_offset + p.mul * p.d1].unflatten(1, (p.mul, p.d1))
        a = edge_attr[:, p.in2_offset : p.in2_offset + p.d2]
        w = edge_weight[:, p.weight_offset : p.weight_offset + p.mul]
        yield p, xs, a, w, torch.tensor(cg, dtype=x.dtype, device=x.device)


# ---------------------------------------------------------------- the Triton operators


@backend.triton_op("fastmlip::tensor_product_conv", mutates_args=())
def _forward(
    x: Tensor, edge_attr: Tensor, edge_weight: Tensor, order: Tensor, tables: Tensor, problem: str
) -> Tensor:
    from fastmlip.kernels import tensor_product_conv as kernels

    described = TensorProductProblem.from_key(problem)
    return kernels.forward(x, edge_attr, edge_weight, order, described)


@backend.triton_op("fastmlip::tensor_product_conv_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, edge_attr: Tensor, edge_weight: Tensor, order: Tensor, tables: Tensor,
    problem: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to x, edge_attr, edge_weight."""
    from fastmlip.kernels import tensor_product_conv as kernels

    described = TensorProductProblem.from_key(problem)
    return kernels.backward(grad, x, edge_attr, edge_weight, order, described)


@backend.triton_op("fastmlip::tensor_product_conv_double_backward", mutates_args=())
def _double_backward(
    hx: Tensor, ha: Tensor, hw: Tensor, grad: Tensor, x: Tensor, edge_attr: Tensor,
    edge_weight: Tensor, order: Tensor, tables: Tensor, problem: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to grad, x, edge_attr, edge_weight."""
    from fastmlip.kernels import tensor_product_conv as kernels

    described = TensorProductProblem.from_key(problem)
    return kernels.double_backward(hx, ha, hw, grad, x, edge_attr, edge_weight, order, described)


# ---------------------------------------------------------------- derivatives of both


def _save(ctx, inputs, output) -> None:
    *operands, problem = inputs
    ctx.save_for_backward(*operands)
    ctx.problem = problem


def _forward_vjp(rungs, ctx, g):
    dx, da, dw = rungs["backward"](g, *ctx.saved_tensors, ctx.problem)
    return dx, da, dw, None, None, None


def _backward_vjp(rungs, ctx, hx, ha, hw):
    grads = rungs["double_backward"](hx, ha, hw, *ctx.saved_tensors, ctx.problem)
    return *grads, None, None, None


def _double_backward_vjp(rungs, ctx, kg, kx, ka, kw):
    """S = sum over i of L with slot i replaced by h_i; so <k, dS> = sum over i != j of L with slot
    i replaced by h_i and slot j by k_j, differentiated term by term."""
    *operands, order, tables = ctx.saved_tensors
    h = dict(zip("xaw", operands[:3], strict=True))
    base = dict(zip("gxaw", operands[3:], strict=True))
    k = {"g": kg, "x": kx, "a": ka, "w": kw}
    grad_h = {slot: torch.zeros_like(value) for slot, value in h.items()}
    grad_base = {slot: torch.zeros_like(value) for slot, value in base.items()}
    for i, j in permutations("gxaw", 2):
        if i == "g":
            continue
        g, x, a, w = (base | {i: h[i], j: k[j]}).values()
        grads = rungs["backward"](g, x, a, w, order, tables, ctx.problem)
        partial = dict(zip("xaw", grads, strict=True))
        partial["g"] = rungs["forward"](x, a, w, order, tables, ctx.problem)
        grad_h[i] = grad_h[i] + partial[i]
        for slot in base:
            if slot not in (i, j):
                grad_base[slot] = grad_base[slot] + partial[slot]
    return *grad_h.values(), *grad_base.values(), None, None, None


def _ladder(suffix: str) -> dict[str, Callable[..., Any]]:
    def rung(name: str, vjp: Callable[..., Any]) -> Rung:
        operator = getattr(torch.ops.fastmlip, f"tensor_product_conv{name}{suffix}").default
        return Rung(operator, _save, vjp)

    return ladder(
        {
            "forward": rung("", _forward_vjp),
            "backward": rung("_backward", _backward_vjp),
            "double_backward": rung("_double_backward", _double_backward_vjp),
        }
    )


_TRITON = _CPP = _ladder("")
if backend.load_extension() is None:
    _CPP = _ladder("_cpu")

    @torch.library.register_fake("fastmlip::tensor_product_conv_cpu")
    def _(x, edge_attr, edge_weight, order, tables, dim_out):
        return x.new_empty((x.shape[0], dim_out))

    def _like(*tensors):
        return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors)

    @torch.library.register_fake("fastmlip::tensor_product_conv_backward_cpu")
    def _(grad, x, edge_attr, edge_weight, order, tables, dim_out):
        return _like(x, edge_attr, edge_weight)

    @torch.library.register_fake("fastmlip::tensor_product_conv_double_backward_cpu")
    def _(hx, ha, hw, grad, x, edge_attr, edge_weight, order, tables, dim_out):
        return _like(grad, x, edge_attr, edge_weight)

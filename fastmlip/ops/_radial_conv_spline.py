"""The spline form of :mod:`fastmlip.ops.radial_conv` on a GPU: edge weights are made in registers.

The formula is linear in ``x``, in ``edge_attr`` and in the edge weights, a function of the place
alone. Forward, backward and double backward are Triton operators, none of which has a tensor
``[E, weight_numel]``; derivatives beyond are those of the same formula with the operators of
:mod:`fastmlip.ops.tensor_product_conv`, which has such tensors.
"""

from __future__ import annotations

import torch

from fastmlip import backend
from fastmlip.ops import _spline as spline
from fastmlip.ops.ladder import Rung, ladder, own
from fastmlip.ops.tensor_product_conv import _TRITON as conv
from fastmlip.problem import TensorProductProblem

Tensor = torch.Tensor


@backend.triton_op("fastmlip::radial_conv", mutates_args=())
def _forward(
    x: Tensor, edge_attr: Tensor, place: Tensor, table: Tensor, first_row: Tensor, order: Tensor,
    tables: Tensor, problem: str,
) -> Tensor:  # fmt: skip
    from fastmlip.kernels import radial_conv as kernels

    described = TensorProductProblem.from_key(problem)
    return kernels.forward(x, edge_attr, place, table, first_row, order, described)


@backend.triton_op("fastmlip::radial_conv_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, edge_attr: Tensor, place: Tensor, table: Tensor, first_row: Tensor,
    order: Tensor, tables: Tensor, problem: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to x, edge_attr, place."""
    from fastmlip.kernels import radial_conv as kernels

    described = TensorProductProblem.from_key(problem)
    return kernels.backward(grad, x, edge_attr, place, table, first_row, order, described)


@backend.triton_op("fastmlip::radial_conv_double_backward", mutates_args=())
def _double_backward(
    hx: Tensor, ha: Tensor, hplace: Tensor, grad: Tensor, x: Tensor, edge_attr: Tensor,
    place: Tensor, table: Tensor, first_row: Tensor, order: Tensor, tables: Tensor, problem: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients with respect to grad, x, edge_attr, place."""
    from fastmlip.kernels import radial_conv as kernels

    described = TensorProductProblem.from_key(problem)
    directions = (hx, ha, hplace)
    return kernels.double_backward(
        *directions, grad, x, edge_attr, place, table, first_row, order, described
    )


# ---------------------------------------------------------------- derivatives


def _save(ctx, inputs, output) -> None:
    *operands, problem = inputs
    ctx.save_for_backward(*operands)
    ctx.problem = problem


def _forward_vjp(rungs, ctx, g):
    return *rungs["backward"](g, *ctx.saved_tensors, ctx.problem), *(None,) * 5


def _backward_vjp(rungs, ctx, hx, ha, hplace):
    grads = rungs["double_backward"](hx, ha, hplace, *ctx.saved_tensors, ctx.problem)
    return *grads, *(None,) * 5


def _double_backward_vjp(rungs, ctx, *towards):
    """From that of tensor_product_conv, and so again to any order."""
    *operands, table, first_row, order, tables = ctx.saved_tensors
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        hx, ha, hplace, grad, x, a, place = (own(t) for t in operands)
        columns = TensorProductProblem.from_key(ctx.problem).weight_numel
        w, slope, bend = (
            spline.combine(spline.basis(place, n), table, first_row, columns) for n in range(3)
        )
        rest = (order, tables, ctx.problem)
        *found, gw = conv["double_backward"](hx, ha, slope * hplace, grad, x, a, w, *rest)
        dw = conv["backward"](grad, x, a, w, *rest)[2]
        found.append((gw * slope + dw * bend * hplace).sum(1, keepdim=True))
        total = sum((one * to).sum() for one, to in zip(found, towards, strict=True))
        third = torch.autograd.grad(
            total, (hx, ha, hplace, grad, x, a, place), create_graph=again, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
    return *third, *(None,) * 5


def _rung(name: str, vjp) -> Rung:
    return Rung(getattr(torch.ops.fastmlip, f"radial_conv{name}").default, _save, vjp)


LADDER = ladder(
    {
        "forward": _rung("", _forward_vjp),
        "backward": _rung("_backward", _backward_vjp),
        "double_backward": _rung("_double_backward", _double_backward_vjp),
    }
)

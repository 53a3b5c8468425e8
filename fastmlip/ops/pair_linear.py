"""A linear layer of edges whose rows are made once for all edges that share them.

With the index of :func:`fastmlip.ops.edge_pair`, which names for an edge the one of itself and its
reverse that stands for both, E edges, and c and k counting columns::

    out[e, k] = sum_c x[edge_pair[e], c] * weight[c, k]

The layers of a radial network are functions of the distance alone, so that rows of ij and ji are
equal, and this halves their work: forward, backward and where parameters are trained.

The sum of ``grad * out`` is linear in each of ``x``, ``weight`` and ``grad``, and three operators
are its derivatives with respect to each: ``out``; ``dx``, zero in rows that stand for no edge; and
``dweight``. The derivatives of each of them are the two others, to any order.
"""

from __future__ import annotations

import torch

from fastmlip import backend
from fastmlip.ops.ladder import Rung, asked, ladder

Tensor = torch.Tensor


def pair_linear(x: Tensor, weight: Tensor, edge_pair: Tensor) -> Tensor:
    """The layer of this page, ``[E, columns of weight]``.

    Args:
        x: ``[E, columns]``, float32 or float64.
        weight: ``[columns of x, any]``, dtype of ``x``.
        edge_pair: ``[E]`` int64, in ``[0, E)``; an edge that stands for others stands for itself.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: an index out of range, or of an edge that does not stand for itself.
    """
    _check(x, weight, edge_pair)
    if backend.choose(x) != "cpp":
        return reference(x, weight, edge_pair)
    return _LADDER["forward"](x, weight, edge_pair)


def pair_linear_dx(weight: Tensor, grad: Tensor, edge_pair: Tensor) -> Tensor:
    """``dx`` of this page, ``[E, rows of weight]``, on the C++ backend; arguments as above."""
    return _LADDER["dx"](weight, grad, edge_pair)


def _check(x: Tensor, weight: Tensor, edge_pair: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"x: expected shape [E, columns], got {tuple(x.shape)}")
    if weight.dtype != x.dtype:
        raise TypeError(f"weight: expected {x.dtype} as x has, got {weight.dtype}")
    if weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"weight: expected a row for each of the {x.shape[1]} columns of x, got "
            f"{tuple(weight.shape)}"
        )
    if edge_pair.dtype != torch.int64:
        raise TypeError(f"edge_pair: expected int64, got {edge_pair.dtype}")
    if edge_pair.dim() != 1 or edge_pair.shape[0] != x.shape[0]:
        raise ValueError(
            f"edge_pair: expected shape [E] with E = {x.shape[0]} as x has, got "
            f"{tuple(edge_pair.shape)}"
        )
    for name, other in (("weight", weight), ("edge_pair", edge_pair)):
        if other.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x has, got {other.device}")


def reference(x: Tensor, weight: Tensor, edge_pair: Tensor) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    return x.index_select(0, edge_pair) @ weight


# ---------------------------------------------------------------- derivatives


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _forward_vjp(rungs, ctx, g):
    x, weight, pair = ctx.saved_tensors
    wanted = asked(ctx)
    dx = rungs["dx"](weight, g, pair) if wanted[0] else None
    return dx, rungs["dweight"](x, g, pair) if wanted[1] else None, None


def _dx_vjp(rungs, ctx, h):
    weight, grad, pair = ctx.saved_tensors
    wanted = asked(ctx)
    dweight = rungs["dweight"](h, grad, pair) if wanted[0] else None
    return dweight, rungs["forward"](h, weight, pair) if wanted[1] else None, None


def _dweight_vjp(rungs, ctx, h):
    x, grad, pair = ctx.saved_tensors
    wanted = asked(ctx)
    dx = rungs["dx"](h, grad, pair) if wanted[0] else None
    return dx, rungs["forward"](x, h, pair) if wanted[1] else None, None


if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::pair_linear_cpu")
    def _(x, weight, edge_pair):
        return x.new_empty((x.shape[0], weight.shape[1]))

    @torch.library.register_fake("fastmlip::pair_linear_dx_cpu")
    def _(weight, grad, edge_pair):
        return grad.new_empty((grad.shape[0], weight.shape[0]))

    @torch.library.register_fake("fastmlip::pair_linear_dweight_cpu")
    def _(x, grad, edge_pair):
        return x.new_empty((x.shape[1], grad.shape[1]))

    _OPS = torch.ops.fastmlip
    _LADDER = ladder(
        {
            "forward": Rung(_OPS.pair_linear_cpu.default, _save, _forward_vjp),
            "dx": Rung(_OPS.pair_linear_dx_cpu.default, _save, _dx_vjp),
            "dweight": Rung(_OPS.pair_linear_dweight_cpu.default, _save, _dweight_vjp),
        }
    )

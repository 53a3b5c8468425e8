"""Linear layers of scalars with SiLU between them, without bias: an MLP of edges or nodes.

With matrices ``W0 .. Wn`` of any sizes, one behind the other in ``weights``, and silu(z) =
z / (1 + exp(-z))::

    out = silu(.. silu(silu([x, x2] @ W0) @ W1) ..) @ Wn

One layer is a linear map. ``x2`` holds further columns of the input in a tensor of its own, and
``split`` puts the first columns of the result in one tensor and the rest in another, so that
nothing is copied to join or to divide them, forward or back. Factors are the caller's: in
``weights``.

The C++ operators take a block of rows through all layers while it is in cache, and write what the
hidden layers are before SiLU, ``[rows, hidden columns]``, where a gradient will be needed: all that
is kept. The first and the second derivatives are one pass each, with the gradient of ``weights``
only where a pass asks for it; it is summed in an order that does not depend on the number of
threads. Third ones take the reference.

Other backends take the reference too: on a GPU it is matrix products at the speed of its library,
and blocks of rows in cache have nothing to gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from fastmlip import backend
from fastmlip.backend import FLOATS
from fastmlip.ops.ladder import Rung, asked, ladder, own, transformed

Tensor = torch.Tensor


def scalar_mlp(
    x: Tensor,
    weights: Tensor,
    widths: Sequence[int],
    x2: Tensor | None = None,
    split: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The MLP of this page, ``[rows, widths[-1]]``; with ``split``, in two tensors.

    Args:
        x: ``[rows, widths[0]]``, float32 or float64; with ``x2`` the first of these columns. Rows
            of a larger tensor are read where they lie.
        weights: ``W0 .. Wn`` flat, one behind the other, ``W0`` being ``[widths[0], widths[1]]``;
            dtype of ``x``.
        widths: columns of the input, of each hidden layer, and of the result.
        x2: ``[rows, the other columns]``, dtype of ``x``.
        split: columns of the first of two results.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
    """
    widths = _check(x, weights, widths, x2, split)
    if backend.choose(x) != "cpp":
        return reference(x, weights, widths, x2, split)
    wanted = x.requires_grad or weights.requires_grad or (x2 is not None and x2.requires_grad)
    wanted = (wanted and torch.is_grad_enabled()) or transformed()
    kept_rows = x.shape[0] if wanted else 0
    first = widths[-1] if split is None else split
    out, out2, _ = _LADDER["forward"](x, x2, weights, widths, first, kept_rows)
    return out if split is None else (out, out2)


def _check(x, weights, widths, x2, split) -> list[int]:
    if x.dtype not in FLOATS:
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    widths = [int(width) for width in widths]
    if len(widths) < 2 or min(widths) < 0:
        raise ValueError(f"widths: expected columns of the input, ..., and result, got {widths}")
    columns = widths[0]
    for name, rows in (("x", x), ("x2", x2)):
        if rows is None:
            continue
        if rows.dim() != 2:
            raise ValueError(f"{name}: expected shape [rows, columns], got {tuple(rows.shape)}")
        if rows.shape[0] != x.shape[0]:
            raise ValueError(f"{name}: expected {x.shape[0]} rows as x has, got {rows.shape[0]}")
        columns -= rows.shape[1]
    if columns:
        got = x.shape[1] if x2 is None else f"{x.shape[1]}, and {x2.shape[1]} of x2"
        raise ValueError(f"x: expected widths[0] = {widths[0]} columns, got {got}")
    numel = sum(a * b for a, b in pairwise(widths))
    if weights.shape != (numel,):
        raise ValueError(
            f"weights: expected the {numel} of layers of widths {widths} in one dimension, got "
            f"shape {tuple(weights.shape)}"
        )
    if split is not None and not 0 <= split <= widths[-1]:
        raise ValueError(f"split: expected 0 to {widths[-1]} columns, got {split}")
    for name, other in (("weights", weights), ("x2", x2)):
        if other is not None and other.dtype != x.dtype:
            raise TypeError(f"{name}: expected {x.dtype} as x has, got {other.dtype}")
        if other is not None and other.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x has, got {other.device}")
    return widths


def reference(
    x: Tensor,
    weights: Tensor,
    widths: Sequence[int],
    x2: Tensor | None = None,
    split: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula of this page; differentiable by torch's own autograd to any order."""
    rows, begin = _join(x, x2), 0
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        rows = rows if i == 0 else torch.nn.functional.silu(rows)
        end = begin + inputs * outputs
        rows, begin = rows @ weights[begin:end].view(inputs, outputs), end
    return rows if split is None else (rows[:, :split], rows[:, split:])


# ---------------------------------------------------------------- derivatives


def _save_forward(ctx, inputs, output) -> None:
    x, x2, weights, ctx.widths, ctx.split, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, x2, weights, output[2])


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.widths, ctx.split, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _forward_vjp(rungs, ctx, grad, grad2, _):
    x, x2, weights, kept = ctx.saved_tensors
    trained = asked(ctx)[2]
    rest = ctx.widths, ctx.split, trained
    dx, dweights = rungs["backward"](grad, grad2, x, x2, weights, kept, *rest)
    return *_halves(dx, x, x2), dweights if trained else None, None, None, None


def _backward_vjp(rungs, ctx, h, hweights):
    grad, grad2, x, x2, weights, kept = ctx.saved_tensors
    trained = asked(ctx)[4]
    operands = h, hweights, grad, grad2, x, x2, weights, kept
    dgrad, dx, dweights = rungs["double_backward"](*operands, ctx.widths, ctx.split, trained)
    to_grads = _grad_halves(ctx, dgrad, grad, grad2)
    return *to_grads, *_halves(dx, x, x2), dweights if trained else None, *(None,) * 4


def _double_backward_vjp(rungs, ctx, *directions):
    """From the reference, and so again to any order."""
    h, hweights, grad, grad2, x, x2, weights, _ = ctx.saved_tensors
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        operands = h, hweights, _join_grads(ctx, grad, grad2, x), _join(x, x2), weights
        # each a tensor of its own, so that derivatives are partial ones: h may depend on x
        apart = [t if t is None else own(t) for t in operands]
        second = _second(*apart, ctx.widths)
        third = iter(_gradients(second, [t for t in apart if t is not None], directions, again))
    dh, dhweights, dgrad, dx, dweights = (t if t is None else next(third) for t in apart)
    to_grads = _grad_halves(ctx, dgrad, grad, grad2)
    return dh, dhweights, *to_grads, *_halves(dx, x, x2), dweights, *(None,) * 4


def _second(h, hweights, grad, x, weights, widths) -> tuple[Tensor, ...]:
    """Gradients of <h, dx> + <hweights, dweights> in grad, x and weights."""
    first = _gradients([reference(x, weights, widths)], [x, weights], [grad])
    return _gradients(first, [grad, x, weights], [h, hweights])


def _gradients(outputs, operands, along, again=True) -> tuple[Tensor, ...]:
    """Of the sum of <outputs, along>, without those that are None."""
    pairs = [p for p in zip(outputs, along, strict=True) if p[1] is not None]
    return torch.autograd.grad(
        [output for output, _ in pairs], operands, [direction for _, direction in pairs],
        create_graph=again, allow_unused=True, materialize_grads=True,
    )  # fmt: skip


def _join(x: Tensor, x2: Tensor | None) -> Tensor:
    return x if x2 is None else torch.cat([x, x2], 1)


def _halves(dx: Tensor, x: Tensor, x2: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if x2 is None:
        return dx, None
    return dx.split([x.shape[1], x2.shape[1]], 1)


def _join_grads(ctx, grad: Tensor | None, grad2: Tensor | None, x: Tensor) -> Tensor:
    """Of all columns of the result; zeros where none came."""
    columns = ctx.split, ctx.widths[-1] - ctx.split
    ends = [
        x.new_zeros((x.shape[0], count)) if g is None else g
        for g, count in zip((grad, grad2), columns, strict=True)
    ]
    return torch.cat(ends, 1)


def _grad_halves(ctx, dgrad: Tensor, grad: Tensor | None, grad2: Tensor | None):
    if ctx.split == ctx.widths[-1]:
        return dgrad, None if grad2 is None else dgrad[:, :0]
    first, second = dgrad.split([ctx.split, ctx.widths[-1] - ctx.split], 1)
    return None if grad is None else first, None if grad2 is None else second


if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::scalar_mlp_cpu")
    def _(x, x2, weights, widths, split, kept_rows):
        out, out2 = (x.new_empty((x.shape[0], n)) for n in (split, widths[-1] - split))
        return out, out2, x.new_empty((kept_rows, sum(widths[1:-1])))

    @torch.library.register_fake("fastmlip::scalar_mlp_backward_cpu")
    def _(grad, grad2, x, x2, weights, kept, widths, split, wants_dweights):
        dx = x.new_empty((x.shape[0], widths[0]))
        return dx, weights.new_empty(weights.shape if wants_dweights else 0)

    @torch.library.register_fake("fastmlip::scalar_mlp_double_backward_cpu")
    def _(h, hweights, grad, grad2, x, x2, weights, kept, widths, split, wants_dweights):
        dgrad, dx = (x.new_empty((x.shape[0], n)) for n in (widths[-1], widths[0]))
        return dgrad, dx, weights.new_empty(weights.shape if wants_dweights else 0)

    _OPS = torch.ops.fastmlip
    _LADDER = ladder(
        {
            "forward": Rung(_OPS.scalar_mlp_cpu.default, _save_forward, _forward_vjp),
            "backward": Rung(_OPS.scalar_mlp_backward_cpu.default, _save, _backward_vjp),
            "double_backward": Rung(
                _OPS.scalar_mlp_double_backward_cpu.default, _save, _double_backward_vjp
            ),
        }
    )

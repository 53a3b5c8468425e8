"""The ladder of an operator that is linear in each of its operands.

With L(g, a, b, ...) = <g, out(a, b, ...)>, linear in every slot, all derivatives are sums of
partial derivatives of L::

    backward         dL/da, dL/db, ...
    double backward  d/d(g, a, b, ...) of  L(g, ha, b, ...) + L(g, a, hb, ...) + ...
    beyond           composed of the two above and the forward

Signatures, with ``rest`` what has no derivative (tables, sizes)::

    forward(*operands, *rest) -> out
    backward(grad, *operands, *rest) -> gradients of the operands
    double_backward(*directions, grad, *operands, *rest) -> gradients of grad and the operands
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import torch

from fastmlip.ops.ladder import Rung, ladder

Tensor = torch.Tensor


def multilinear_ladder(name: str, operands: int) -> dict[str, Callable[..., Any]]:
    """The ladder of ``fastmlip::NAME``, linear in its first ``operands``, of ``NAME_backward`` and
    ``NAME_double_backward``. Where NAME ends in ``_cpu``, theirs do.

    An operand of no columns is one that is not there.
    """
    stem, cpu, _ = name.partition("_cpu")
    return ladder(
        {
            rung: Rung(
                getattr(torch.ops.fastmlip, f"{stem}{suffix}{cpu}").default,
                _save,
                partial(vjp, operands),
            )
            for rung, suffix, vjp in (
                ("forward", "", _forward_vjp),
                ("backward", "_backward", _backward_vjp),
                ("double_backward", "_double_backward", _double_backward_vjp),
            )
        }
    )


def _save(ctx, inputs, output) -> None:
    ctx.tensors = [isinstance(value, Tensor) for value in inputs]
    ctx.save_for_backward(*(t for t in inputs if isinstance(t, Tensor)))
    ctx.others = [value for value in inputs if not isinstance(value, Tensor)]


def _inputs(ctx) -> list[Any]:
    tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
    return [next(tensors) if is_tensor else next(others) for is_tensor in ctx.tensors]


def _forward_vjp(count, rungs, ctx, grad):
    inputs = _inputs(ctx)
    grads = rungs["backward"](grad, *inputs)
    grads = grads if isinstance(grads, tuple) else (grads,)
    return *grads, *([None] * (len(inputs) - count))


def _backward_vjp(count, rungs, ctx, *directions):
    inputs = _inputs(ctx)
    grads = rungs["double_backward"](*directions, *inputs)
    return *grads, *([None] * (len(inputs) - count - 1))


def _double_backward_vjp(count, rungs, ctx, *k):
    """S = sum over i of L with slot i replaced by h_i; so <k, dS> = sum over i != j of L with slot
    i replaced by h_i and slot j by k_j, differentiated term by term. Slot 0 is g."""
    inputs = _inputs(ctx)
    h, base, rest = inputs[:count], inputs[count : 2 * count + 1], inputs[2 * count + 1 :]
    grad_h = [torch.zeros_like(t) for t in h]
    grad_base = [torch.zeros_like(t) for t in base]
    slots = [i for i, t in enumerate(base) if t.shape[1:].numel()]
    for i, j in permutations(slots, 2):
        if i == 0:
            continue
        point = [h[i - 1] if s == i else k[j] if s == j else base[s] for s in range(count + 1)]
        partials = [rungs["forward"](*point[1:], *rest), *rungs["backward"](*point, *rest)]
        grad_h[i - 1] = grad_h[i - 1] + partials[i]
        for slot in slots:
            if slot not in (i, j):
                grad_base[slot] = grad_base[slot] + partials[slot]
    return *grad_h, *grad_base, *([None] * len(rest))

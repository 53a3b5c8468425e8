"""Autograd for a family of operators, each the derivative of another: their *ladder*.

Every rung gets a registered formula, which graphs (``torch.compile``, export) use. Eager calls take
a ``torch.autograd.Function`` of the same formula instead, because at a hundred atoms the Python
around an operator is all that it costs, and this form has about half of it. Transforms of
``torch.func`` take one more, in the form that they ask for.

Gradients: those of outputs that nothing depends on are None where a rung says so
(``set_materialize_grads``), else zeros; where all are None, no formula runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastmlip import torch_private

Tensor = torch.Tensor
PLAIN = (Tensor, torch.nn.Parameter)


class Rung(NamedTuple):
    """An operator and its derivative.

    ``save(ctx, inputs, output)`` keeps what ``vjp(rungs, ctx, *grads)`` needs; ``rungs`` are the
    operators of the ladder by name, for use in the formula. A formula reads ``ctx.saved_tensors``
    once: checkpoints of torch compute them when they are read, and only once.
    """

    operator: Any
    save: Callable[..., None]
    vjp: Callable[..., Any]


def ladder(rungs: dict[str, Rung]) -> dict[str, Callable[..., Any]]:
    """Register the formulas of all rungs, and return the rungs for calls from Python."""
    operators = {name: rung.operator for name, rung in rungs.items()}
    calls: dict[str, Callable[..., Any]] = {}
    for name, (operator, save, vjp) in rungs.items():
        torch.library.register_autograd(operator, _backward(vjp, operators), setup_context=save)
        register_vmap(operator)
        calls[name] = _call(operator, save, _backward(vjp, calls))
    return calls


def register_vmap(operator: Any) -> None:
    """Let ``torch.func.vmap`` run ``operator`` for each of a batch, one after the other."""
    torch.library.register_vmap(operator, _one_by_one(operator))


def asked(ctx: Any) -> list[bool]:
    """Whether the backward pass that runs needs the gradient of each operand.

    ``needs_input_grad`` says whether any pass would: forces, of a model that can be trained, need
    no gradient of its parameters.
    """
    if torch.compiler.is_compiling():  # a graph leaves out what nothing needs
        return list(ctx.needs_input_grad)
    nodes = (node for node, _ in ctx.next_functions if node is not None)
    return [needs and torch_private.will_run(next(nodes)) for needs in ctx.needs_input_grad]


def own(t: Tensor) -> Tensor:
    """``t`` as a tensor of its own that requires a gradient, for partial derivatives: operands of a
    derivative may depend on one another. The graph of ``t``, if there is one, stays connected."""
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def eager() -> bool:
    """Whether nothing watches or transforms calls: no graph is made, no dispatch mode is on."""
    return (
        not torch.compiler.is_compiling()
        and not torch_private.forward_mode(())
        and not torch_private.modes_active()
        and not torch_private.transforms_active()
    )


def transformed() -> bool:
    """Whether operands may be those of a ``torch.func`` transform, whose ``requires_grad`` does not
    say of which a gradient will be asked."""
    return torch_private.transforms_active()


def keep(ctx: Any, *operands: Any) -> None:
    """Save tensors, None and anything else for the backward pass, which has them from
    :func:`kept`."""
    ctx.others = [None if isinstance(one, Tensor) else one for one in operands]
    ctx.save_for_backward(*(one if isinstance(one, Tensor) else None for one in operands))


def kept(ctx: Any) -> tuple[Any, ...]:
    """What :func:`keep` saved."""
    pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
    return tuple(other if t is None else t for t, other in pairs)


def on_cpu(*operands: Tensor | None) -> bool:
    """Whether all that are given lie there: one that does not, as a meta tensor, would take a call
    of a C++ operator to its fake, and the result would be memory that nobody wrote."""
    for t in operands:  # noqa: SIM110 (a generator takes as long again)
        if t is not None and not t.is_cpu:
            return False
    return True


def has_memory(t: Tensor) -> bool:
    """Whether a kernel may read ``t`` as it lies there: not a fake, lazy or wrapped tensor."""
    return type(t) in PLAIN and not (t.is_neg() or torch_private.is_lazy(t))


def _backward(vjp: Callable[..., Any], rungs: dict[str, Any]) -> Callable[..., Any]:
    def backward(ctx, *grads):
        if all(g is None for g in grads):
            return (None,) * len(ctx.needs_input_grad)
        return vjp(rungs, ctx, *grads)

    return backward


def _one_by_one(call: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for ``torch.func.vmap``: ``call`` for each of the batch, and the results stacked."""

    def rule(info, in_dims, *operands):
        if info.batch_size == 0:
            raise NotImplementedError(f"{call}: no torch.func.vmap over a batch of size 0")
        results = []
        for i in range(info.batch_size):
            pairs = zip(operands, in_dims, strict=True)
            # the places in a list of numbers are a list, too
            results.append(call(*(x.select(d, i) if isinstance(d, int) else x for x, d in pairs)))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(outputs) for outputs in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


def _call(
    operator: Any, save: Callable[..., None], formula: Callable[..., Any]
) -> Callable[..., Any]:
    def run(*operands):
        """``operator`` without its registered formula, but with all else that torch does at a call:
        profilers and modes, lazy zeros and negations of tensors."""
        with torch_private.below_autograd():
            return operator(*operands)

    class Eager(torch.autograd.Function):
        # without a setup_context, for which torch would inspect signatures at every call
        @staticmethod
        def forward(ctx, *operands):
            output = run(*operands)
            save(ctx, operands, output)
            return output

        backward = staticmethod(formula)

    class Transformed(torch.autograd.Function):
        forward = staticmethod(run)
        setup_context = staticmethod(save)
        backward = staticmethod(formula)

        @staticmethod
        def vmap(info, in_dims, *operands):
            return _one_by_one(call)(info, in_dims, *operands)

    def call(*operands):
        if torch_private.forward_mode(operands):  # torch would take the tangents for zero
            raise NotImplementedError(
                f"{operator.name()}: no forward-mode derivatives (torch.func.jvp, dual numbers); "
                "expected torch.autograd.grad"
            )
        if torch.compiler.is_compiling() and not transformed():
            return operator(*operands)
        if transformed():
            return Transformed.apply(*operands)
        return Eager.apply(*operands) if torch.is_grad_enabled() else run(*operands)

    return call

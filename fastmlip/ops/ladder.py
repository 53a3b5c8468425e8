"""Autograd for a family of operators, each the derivative of another: their *ladder*.

Every rung gets a registered formula, which graphs (``torch.compile``, export) use. Eager calls take
a ``torch.autograd.Function`` of the same formula instead, because at a hundred atoms the Python
around an operator is all that it costs: about 10 us a call with a gradient, against 22.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

Tensor = torch.Tensor
PLAIN = (Tensor, torch.nn.Parameter)
_modes, _transforms = torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class Rung(NamedTuple):
    """An operator and its derivative.

    ``save(ctx, inputs, output)`` keeps what ``vjp(rungs, ctx, *grads)`` needs; ``rungs`` are the
    operators of the ladder by name, for use in the formula.
    """

    operator: Any
    save: Callable[..., None]
    vjp: Callable[..., Any]


def ladder(rungs: dict[str, Rung]) -> dict[str, Callable[..., Any]]:
    """Register the formulas of all rungs, and return the rungs for calls from Python."""
    operators = {name: rung.operator for name, rung in rungs.items()}
    calls: dict[str, Callable[..., Any]] = {}
    for name, (operator, save, vjp) in rungs.items():
        torch.library.register_autograd(operator, partial(vjp, operators), setup_context=save)
        calls[name] = _call(operator, save, partial(vjp, calls))
    return calls


def asked(ctx: Any) -> list[bool]:
    """Whether the backward pass that runs needs the gradient of each operand.

    ``needs_input_grad`` says whether any pass would: forces, of a model that can be trained, need
    no gradient of its parameters.
    """
    nodes = (node for node, _ in ctx.next_functions if node is not None)
    return [needs and _runs(next(nodes)) for needs in ctx.needs_input_grad]


def eager() -> bool:
    """Whether nothing watches or transforms calls: no graph is made, no dispatch mode is on."""
    return (
        not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not _modes()
        and not _transforms()
    )


def on_cpu(*operands: Tensor | None) -> bool:
    """Whether all that are given lie there: one that does not, as a meta tensor, would take a call
    of a C++ operator to its fake, and the result would be memory that nobody wrote."""
    for t in operands:  # noqa: SIM110 (a generator takes as long again)
        if t is not None and not t.is_cpu:
            return False
    return True


def has_memory(t: Tensor) -> bool:
    """Whether a kernel may read ``t`` as it lies there: not a fake, lazy or wrapped tensor."""
    return type(t) in PLAIN and not (t.is_neg() or t._is_zerotensor() or _wrapped(t))


def _runs(node: Any) -> bool:
    leaf = not node.next_functions  # of which torch does not say it in autograd.grad
    return leaf or torch._C._will_engine_execute_node(node)


def _call(operator: Any, save: Callable[..., None], vjp: Callable[..., Any]) -> Callable[..., Any]:
    class Eager(torch.autograd.Function):
        # without a setup_context, for which torch would inspect signatures at every call
        @staticmethod
        def forward(ctx, *operands):
            output = _below_autograd(operator, operands)
            save(ctx, operands, output)
            return output

        backward = staticmethod(vjp)

    # past what torch does first in Python, for tensors that outlived a functorch transform, where
    # there are none: a twentieth of the time of ZBL with its backward pass at 1,000 edges
    apply = super(torch.autograd.Function, Eager).apply
    arguments = enumerate(operator._schema.arguments)
    tensors = [i for i, argument in arguments if "Tensor" in str(argument.type)]

    def call(*operands):
        if forward_ad._current_level >= 0:  # torch would take the tangents for zero
            raise NotImplementedError(
                f"{operator.name()}: no forward-mode derivatives (torch.func.jvp, dual numbers); "
                "expected torch.autograd.grad"
            )
        if torch.compiler.is_compiling() or _transforms():
            return operator(*operands)
        if torch.is_grad_enabled():
            for i in tensors:
                if operands[i] is not None and _wrapped(operands[i]):
                    return Eager.apply(*operands)
            return apply(*operands)
        return _below_autograd(operator, operands)

    return call


def _below_autograd(operator: Any, operands: tuple) -> Any:
    """``operator`` without its registered formula, but with all else that torch does at a call:
    profilers and modes, lazy zeros and negations of tensors."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*operands)

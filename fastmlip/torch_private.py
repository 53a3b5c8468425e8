"""All that this package uses of torch beyond its public interface.

Each function says what it does where torch has dropped the name: something public that gives the
same numbers, if more slowly. ``USES`` lists the names; ``tests/test_torch_private.py`` takes each
away and runs the operators.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile

Tensor = torch.Tensor

USES = (  # of torch
    "_C._are_functorch_transforms_active",
    "_C._len_torch_dispatch_stack",
    "_C._functorch.is_functorch_wrapped_tensor",
    "_C._will_engine_execute_node",
    "_C._AutoDispatchBelowAutograd",
    "_assert_async",
    "_subclasses.FakeTensorMode",
    "autograd.forward_ad._current_level",
    "Tensor._is_zerotensor",
    "Tensor._version",
    "utils._python_dispatch.TorchDispatchMode",
)


def _find(name: str) -> Any:
    """The attribute of torch, or None where it has none of that name."""
    found: Any = torch
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _or(name: str, without: Callable[..., Any]) -> Callable[..., Any]:
    return _find(name) or without


# read once: a lookup in each call would cost as much as what is called
_modes = _or("_C._len_torch_dispatch_stack", lambda: 1)
_is_wrapped = _or("_C._functorch.is_functorch_wrapped_tensor", lambda t: True)
_is_zero = _or("Tensor._is_zerotensor", lambda t: True)
_will_execute = _or("_C._will_engine_execute_node", lambda node: True)
_counts_writes = _find("Tensor._version") is not None
_Mode: Any = _find("utils._python_dispatch.TorchDispatchMode")
_Fake: Any = _find("_subclasses.FakeTensorMode")
_has_level = _find("autograd.forward_ad._current_level") is not None

#: Whether a transform of torch.func is active. Else: one may be, but none in a graph.
transforms_active = _or(
    "_C._are_functorch_transforms_active", lambda: not torch.compiler.is_compiling()
)

#: A context in which operators run without their autograd formula, where no gradient is recorded.
#: Else: torch looks at the formula and passes it by.
below_autograd = _or("_C._AutoDispatchBelowAutograd", contextlib.nullcontext)


def modes_active() -> bool:
    """Whether a ``TorchDispatchMode`` watches calls. Else: one may do."""
    return _modes() > 0


def forward_mode(operands: tuple) -> bool:
    """Whether forward-mode derivatives are on. Else: whether an operand carries one."""
    if _has_level:
        return forward_ad._current_level >= 0
    return any(
        isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in operands
    )


def is_lazy(t: Tensor) -> bool:
    """Whether ``t`` is a zero without memory, or wrapped by a transform of torch.func. Else: it may
    be."""
    return _is_zero(t) or _is_wrapped(t)


def writes(t: Tensor) -> int | None:
    """How often the memory of ``t`` was written to; None where torch does not count, as while it
    compiles. Else: None."""
    if not _counts_writes or torch.compiler.is_compiling() or t.is_inference():
        return None
    return t._version


def will_run(node: Any) -> bool:
    """Whether the backward pass that runs comes to ``node``. Else: it may do."""
    leaf = not node.next_functions  # of which torch does not say it in autograd.grad
    return leaf or _will_execute(node)


def count_operators(namespace: str, run: Callable[[], Any]) -> dict[str, int]:
    """How often ``run()`` calls each operator of a namespace, by name. Else: torch's profiler
    counts, which writes to the error output."""
    called: Counter[str] = Counter()
    if _Mode is None:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
        called.update({event.key: event.count for event in seen.key_averages()})
    else:

        class Called(_Mode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                called[func.name()] += 1
                return func(*args, **(kwargs or {}))

        with Called():
            run()
    start = f"{namespace}::"
    return {n.removeprefix(start): called[n] for n in sorted(called) if n.startswith(start)}


def watching(see: Callable[[Any, tuple, dict], Any]) -> Any:
    """A context in which a call of an operator is ``see(operator, args, kwargs)``; there, only
    within the context again are calls seen. Else: RuntimeError."""
    if _Mode is None:
        raise RuntimeError(f"torch {torch.__version__} has no TorchDispatchMode")

    class Watch(_Mode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return see(func, args, kwargs or {})

    return Watch()


def shapes_alone() -> Any:
    """A context in which new tensors have a shape and no numbers; its ``from_tensor`` makes such
    copies of others. Else: RuntimeError."""
    if _Fake is None:
        raise RuntimeError(f"torch {torch.__version__} has no FakeTensorMode")
    return _Fake(allow_non_fake_inputs=True)


def asks_for_numbers(error: BaseException) -> bool:
    """Whether an error of :func:`shapes_alone` says that numbers were asked for."""
    names = ("DataDependentOutputException", "DynamicOutputShapeException")
    return type(error).__name__ in names


def _assert_now(condition: Tensor, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


#: ``(condition, message)``: raise RuntimeError where the condition is false; on a GPU when the
#: device next synchronises. Else: synchronise now.
assert_async = _or("_assert_async", _assert_now)

#: what logs "Loading outdated pt2 file" while a compiled model is loaded. Else: the message stays.
PACKAGE_LOGGER = "torch._inductor.package.package"
#: what warns of a compiled model whose code is for another processor than Inductor would choose.
#: Else: the message stays.
ARCHIVE_LOGGER = "torch.export.pt2_archive._package"

"""Modules inside a swapped one that its own forward does not call: what they hold must be all.

A fast forward takes the weights of such modules and leaves their forward out. Hooks on them would
not run, and neither would an adapter in their place, so a module that has any is not swapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch

# a packaged model has copies of their classes
HOMES = {"torch", "e3nn", "nequip", "allegro", "sevenn", "mace", "fastmlip"}
HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}


def added(module: torch.nn.Module) -> str:
    """What was added to ``module`` that only a call of it would run; empty where nothing was."""
    state = vars(module)
    for hooks, what in HOOKS.items():
        if state.get(hooks):
            return f"{what} on it, which would not run any more"
    own = "forward" in state and not isinstance(module, torch.jit.ScriptModule)
    return "its forward was set on the instance" if own else ""


def why_not(parts: Iterable[tuple[str, Any]]) -> str:
    """Why a forward must not pass by any of the modules ``(name, module)``; empty where it may."""
    for name, module in parts:
        if what := added(module):
            return f"its {name}: {what}" if name else what
    return ""


@cache
def _kind(cls: Any) -> str:
    if cls.__name__.startswith("Parametrized"):  # by torch.nn.utils.parametrize
        cls = cls.__bases__[0]
    known = HOMES.intersection(cls.__module__.split("."))
    return cls.__name__ if known else f"{cls.__module__}.{cls.__name__}"


def kind(module: torch.nn.Module) -> str:
    """The name of a module's class, with its package where that is not one of the host's, and
    without what ``torch.nn.utils.parametrize`` makes of it."""
    cls: Any = type(module)
    return _kind(cls)


class Look:
    """Keeps what was found out about modules while they stay what they were, which takes less time
    to see: the same classes and children, no hooks."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Any], torch.nn.Module, type, tuple[Any, ...]]] = []
        self.found: Any = None

    def __reduce__(self):
        return Look, ()  # a copy is of other modules

    def __call__(self, look: Callable[[], tuple[Any, Iterable[torch.nn.Module]]]) -> Any:
        """The answer of ``look``, which returns it and the modules that it depends on."""
        if not self.seen or not all(_is_as_it_was(*seen) for seen in self.seen):
            self.found, modules = look()
            seen = [(vars(m), m, type(m), tuple(m._modules.values())) for m in modules]
            self.seen = seen if all(_is_as_it_was(*one) for one in seen) else []  # not with hooks
        return self.found


def _is_as_it_was(state: dict[str, Any], module: Any, cls: type, children: tuple[Any, ...]) -> bool:
    return not (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        or type(module) is not cls
        or tuple(state["_modules"].values()) != children
    )

"""e3nn's ``Gate``, NequIP's nonlinearity, on :mod:`fastmlip.ops.gate`.

What takes its place is of a class derived from the host's own, with the same modules inside, which
have entries in the state dict.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmlip.integrations import inner
from fastmlip.integrations.derived import Derived, derive
from fastmlip.nn.gate import apply, segments_of, set_segments
from fastmlip.ops.gate import Segment

PARTS = {"_Sortcut", "Activation", "ElementwiseTensorProduct"}


class FastGate(Derived):
    """What the derived class has in place of the host's."""

    segments: tuple[Segment, ...]
    tables: torch.Tensor
    look: inner.Look
    _nequip_custom_ops_libs = ("fastmlip",)  # imported before a compiled model is loaded

    def forward(self: Any, features: torch.Tensor) -> torch.Tensor:
        """``[..., irreps_out.dim]``."""
        return super().forward(features) if self.altered() else apply(self, features)  # type: ignore[misc]

    @torch.compiler.assume_constant_result
    def altered(self: Any) -> str:
        """What was put inside after the swap and needs the host's forward to run; empty where there
        is nothing."""
        return self.look(lambda: (unsupported_parts(self), [self, *self.children()]))


def unsupported(module: torch.nn.Module) -> str:
    """Why a ``Gate`` cannot be swapped; empty where it can."""
    if not all(hasattr(module, name) for name in ("sc", "act_scalars", "act_gates", "mul")):
        return "an unknown version of e3nn's class"
    try:
        segments_of(module)
    except ValueError as error:
        return str(error)
    return unsupported_parts(module)


def unsupported_parts(module: torch.nn.Module) -> str:
    """Why modules inside cannot be passed by; empty where they can."""
    for name, part in module.named_children():
        if inner.kind(part) not in PARTS:
            return f"its {name} is a {inner.kind(part)}"
    return inner.why_not(module.named_children())


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastGate, old)
    set_segments(new, old)
    new.look = inner.Look()
    return new

"""e3nn's ``Gate``, NequIP's nonlinearity, on :mod:`fastmlip.ops.gate`.

What takes its place is of a class derived from the host's own, with the same modules inside, which
have entries in the state dict.
"""

from __future__ import annotations

from typing import Any

import torch

from fastmlip.integrations.derived import Derived, derive
from fastmlip.nn.gate import apply, segments_of, set_segments


class FastGate(Derived):
    """What the derived class has in place of the host's."""

    _nequip_custom_ops_libs = ("fastmlip",)  # imported before a compiled model is loaded

    def forward(self: Any, features: torch.Tensor) -> torch.Tensor:
        """``[..., irreps_out.dim]``."""
        return apply(self, features)


def unsupported(module: torch.nn.Module) -> str:
    """Why a ``Gate`` cannot be swapped; empty where it can."""
    if not all(hasattr(module, name) for name in ("sc", "act_scalars", "act_gates", "mul")):
        return "an unknown version of e3nn's class"
    try:
        segments_of(module)
    except ValueError as error:
        return str(error)
    return ""


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastGate, old)
    set_segments(new, old)
    return new

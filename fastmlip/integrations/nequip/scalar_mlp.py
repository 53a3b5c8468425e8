"""NequIP's ``ScalarMLP``, in Allegro's models scalar embedding and readout, on
:func:`fastmlip.ops.scalar_mlp`."""

from __future__ import annotations

from typing import Any

import torch

from fastmlip.integrations import inner, mlps
from fastmlip.integrations.derived import Derived, derive, is_cpp

HOST_ATTRIBUTES = ("field", "out_field", "mlp_module")


class FastScalarMLP(Derived):
    """What the derived class has in place of the host's."""

    look: inner.Look
    _nequip_custom_ops_libs = ("fastmlip",)  # imported before a compiled model is loaded

    def forward(self: Any, data: dict[str, Any]) -> dict[str, Any]:
        """``data`` with ``out_field`` set."""
        x = data[self.field]
        if x.dim() != 2 or not is_cpp(x) or self.altered():
            return super().forward(data)  # type: ignore[misc]
        data[self.out_field] = mlps.apply(self.mlp_module, x)
        return data

    @torch.compiler.assume_constant_result
    def altered(self: Any) -> str:
        """What was put inside after the swap and needs the host's forward to run; empty where there
        is nothing."""
        return self.look(lambda: (unsupported(self), list(self.modules())))


def unsupported(module: Any) -> str:
    """Why a ``ScalarMLP`` cannot be swapped; empty where it can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of NequIP's class, without {', '.join(missing)}"
    inside = [(name, part) for name, part in module.named_modules() if name]
    return mlps.unsupported(module.mlp_module, "MLP") or inner.why_not(inside)


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same modules in one of the fast class."""
    new = derive(FastScalarMLP, old)
    new.look = inner.Look()
    return new

"""NequIP's ``ZBL`` on :class:`fastmlip.nn.ZBL`."""

from __future__ import annotations

from typing import Any

import torch

from fastmlip.integrations import inner
from fastmlip.nn import ZBL

HOST_ATTRIBUTES = (
    "atomic_numbers", "_qqr2exesquare", "cutoff", "per_atom_energy_field", "irreps_in",
    "irreps_out", "model_dtype",
)  # fmt: skip


class FastZBL(ZBL):
    """Takes the place of NequIP's ``ZBL``, with the same attributes and state dict.

    Args:
        old: the host's module; its buffers become those of this one.
    """

    def __init__(self, old: torch.nn.Module) -> None:
        torch.nn.Module.__init__(self)
        for name in ("per_atom_energy_field", "irreps_in", "irreps_out", "model_dtype"):
            setattr(self, name, getattr(old, name))
        for name in ("atomic_numbers", "_qqr2exesquare"):
            self.register_buffer(name, getattr(old, name))
        self.register_buffer("_cutoff", None, persistent=False)
        cutoff: Any = old.cutoff
        self.p = float(cutoff.p)


def unsupported(module: torch.nn.Module) -> str:
    """Why a ``ZBL`` cannot be swapped; empty where it can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of NequIP's class, without {', '.join(missing)}"
    cutoff: Any = module.cutoff
    name = getattr(cutoff, "original_name", type(cutoff).__name__)  # of a scripted module, too
    if name != "PolynomialCutoff" or not hasattr(cutoff, "p"):
        return f"its cutoff is a {name}, not a PolynomialCutoff"
    return inner.why_not(module.named_modules())

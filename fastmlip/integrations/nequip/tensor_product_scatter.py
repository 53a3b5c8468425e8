"""NequIP's ``TensorProductScatter`` on :class:`fastmlip.nn.TensorProductConv`."""

from __future__ import annotations

from typing import Any

import torch

from fastmlip.integrations import inner
from fastmlip.integrations.nequip.forwards import objection
from fastmlip.nn import TensorProductConv
from fastmlip.problem import TensorProductProblem, clebsch_gordan

HOST_ATTRIBUTES = (
    "feature_irreps_in", "irreps_edge_attr", "irreps_mid", "instructions", "model_dtype",
)  # fmt: skip


class FastTensorProductScatter(torch.nn.Module):
    """Takes the place of a ``TensorProductScatter``, with the same attributes and state dict.

    Args:
        old: the host's module. Its e3nn tensor product stays as ``tp``, for its state-dict keys
            only; the forward pass does not use it.
    """

    _nequip_custom_ops_libs = ("fastmlip",)  # imported before a compiled model is loaded

    def __init__(self, old: torch.nn.Module) -> None:
        super().__init__()
        for name in HOST_ATTRIBUTES:
            setattr(self, name, getattr(old, name))
        self.tp = old.tp
        self.conv = TensorProductConv.from_problem(TensorProductProblem.from_e3nn(old.tp))

    def forward(
        self,
        x: torch.Tensor,
        edge_attr: torch.Tensor,
        edge_weight: torch.Tensor,
        edge_dst: torch.Tensor,
        edge_src: torch.Tensor,
    ) -> torch.Tensor:
        """``[N, irreps_mid.dim]``; N counts the rows of ``x``, ghost atoms included."""
        if altered := self.altered():
            raise RuntimeError(f"accelerated by fastmlip: {altered}; put it on the stock model")
        return self.conv(x, edge_attr, edge_weight, edge_dst, edge_src)

    @torch.compiler.assume_constant_result
    def altered(self) -> str:
        """What was put onto e3nn's product after the swap; empty where there is nothing."""
        return inner.why_not([("tp", self.tp)])


def unsupported(module: torch.nn.Module) -> str:
    """Why a ``TensorProductScatter`` cannot be swapped; empty where it can."""
    missing = [name for name in ("tp", *HOST_ATTRIBUTES) if not hasattr(module, name)]
    if missing:
        return f"an unknown version of NequIP's class, without {', '.join(missing)}"
    tp: Any = module.tp
    if inner.kind(tp) != "TensorProduct":
        return f"its tensor product is a {inner.kind(tp)}"
    if getattr(tp, "shared_weights", True) or getattr(tp, "internal_weights", True):
        return "its weights are shared between edges"
    try:
        TensorProductProblem.from_e3nn(tp)
    except (AttributeError, ValueError) as error:
        return str(error)
    return _other_clebsch_gordan(tp) or objection(module.named_modules())


def _other_clebsch_gordan(tp: torch.nn.Module) -> str:
    """A model may bring its own e3nn; some versions before 0.5 have other signs in these tables."""
    for name, buffer in tp.named_buffers():
        _, found, degrees = name.rpartition("_w3j_")
        if found:
            ours = torch.zeros(buffer.shape, dtype=torch.float64)
            l1, l2, l3 = map(int, degrees.split("_"))
            for m1, m2, m3, value in clebsch_gordan(l1, l2, l3):
                ours[m1, m2, m3] = value
            if (ours - buffer.detach().cpu().double()).abs().max() > 1e-5:
                return f"its Wigner 3j symbols {degrees} differ from those of the installed e3nn"
    return ""

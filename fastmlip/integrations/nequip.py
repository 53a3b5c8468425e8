"""NequIP's ``TensorProductScatter`` on :class:`fastmlip.nn.TensorProductConv`.

The modifier ``enable_FastMLIP`` of ``nequip.model.modify``, ``nequip-compile --modifiers`` and
``nequip-prepare-lmp-mliap --modifiers`` is :func:`fastmlip.accelerate`; the top-level module
``fastmlip_nequip_plugin`` is what makes NequIP find it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from fastmlip.nn import TensorProductConv
from fastmlip.problem import TensorProductProblem, clebsch_gordan

HOST_CLASS = "TensorProductScatter"
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
        return self.conv(x, edge_attr, edge_weight, edge_dst, edge_src)


def judge(module: torch.nn.Module) -> tuple[str, str] | None:
    """``(status, reason)`` of a module that this file knows, None for any other."""
    name = type(module).__name__
    if isinstance(module, FastTensorProductScatter):
        return "swapped", ""
    if not name.endswith(HOST_CLASS):
        return None
    if name != HOST_CLASS:
        return "kept", f"{name} is another accelerated kernel already"
    reason = _unsupported(module)
    return ("kept", reason) if reason else ("ready", "")


def replace(old: torch.nn.Module) -> FastTensorProductScatter:
    """The new module for a ``ready`` one, on its device and in its training mode."""
    new = FastTensorProductScatter(old)
    tensor = next(itertools.chain(old.parameters(), old.buffers()), None)
    return new.to(device=None if tensor is None else tensor.device).train(old.training)


def after_swap(model: torch.nn.Module) -> None:
    """Drop what ``compile_mode: compile`` compiled with the old modules; it compiles again."""
    module: Any
    for module in model.modules():
        if hasattr(module, "_compiled_cache"):
            module._compiled_cache[0].clear()
            module.weight_names = module.buffer_names = None


def modifiers(model: torch.nn.Module) -> dict[str, Callable[..., Any]]:
    """``{"enable_FastMLIP": ...}`` for a model with a module that this file knows, else ``{}``."""
    known = any(judge(module) for module in model.modules())
    return {"enable_FastMLIP": _modifier()} if known else {}


@cache
def _modifier() -> Callable[..., Any]:
    from nequip.nn.model_modifier_utils import model_modifier

    from fastmlip.integrations.swap import accelerate

    class FastMLIP:
        @model_modifier(
            persistent=False,
            private=False,
            unsupported_devices=[],
            supported_compile_modes=["eager", "compile", "aotinductor"],
        )
        @classmethod
        def enable_FastMLIP(cls, model: torch.nn.Module) -> torch.nn.Module:
            """
            Enable fastmlip's fused tensor-product convolution, on CPUs and GPUs.
            """
            return accelerate(model)

    return FastMLIP.enable_FastMLIP


def _unsupported(module: torch.nn.Module) -> str:
    """Why a ``TensorProductScatter`` cannot be swapped; empty where it can."""
    missing = [name for name in ("tp", *HOST_ATTRIBUTES) if not hasattr(module, name)]
    if missing:
        return f"an unknown version of NequIP's class, without {', '.join(missing)}"
    tp: Any = module.tp
    if getattr(tp, "shared_weights", True) or getattr(tp, "internal_weights", True):
        return "its weights are shared between edges"
    try:
        TensorProductProblem.from_e3nn(tp)
    except (AttributeError, ValueError) as error:
        return str(error)
    return _other_clebsch_gordan(tp)


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

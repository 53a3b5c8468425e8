"""NequIP's modules on those of :mod:`fastmlip.nn`; a file here for each class of NequIP's.

The modifier ``enable_FastMLIP`` of ``nequip.model.modify``, ``nequip-compile --modifiers`` and
``nequip-prepare-lmp-mliap --modifiers`` is :func:`fastmlip.accelerate`; the top-level module
``fastmlip_nequip_plugin`` is what makes NequIP find it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

from fastmlip.integrations.nequip import edge_embedding, tensor_product_scatter


class Swap(NamedTuple):
    """What takes the place of a host class: ``fast(old)``, where ``unsupported(old)`` is empty."""

    fast: type[torch.nn.Module]
    unsupported: Callable[[torch.nn.Module], str]


SWAPS = {
    "TensorProductScatter": Swap(
        tensor_product_scatter.FastTensorProductScatter, tensor_product_scatter.unsupported
    ),
    "SphericalHarmonics": Swap(
        edge_embedding.FastSphericalHarmonics, edge_embedding.unsupported_harmonics
    ),
}
FAST = (*(swap.fast for swap in SWAPS.values()), *edge_embedding.FAST)


def judge(module: torch.nn.Module, model: torch.nn.Module) -> tuple[str, str] | None:
    """``(status, reason)`` of a module of ``model`` that this folder knows, None for any other."""
    if isinstance(module, FAST):
        return "swapped", ""
    name = type(module).__name__
    if name in edge_embedding.PARTS:
        return edge_embedding.judge(module, model)
    if name == "SphericalHarmonics":
        return edge_embedding.judge_harmonics(module, model)
    host = next((host for host in SWAPS if name.endswith(host)), None)
    if host is None:
        return None
    if name != host:
        return "kept", f"{name} is another accelerated kernel already"
    reason = SWAPS[host].unsupported(module)
    return ("kept", reason) if reason else ("ready", "")


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The new module for a ``ready`` one of ``model``, on its device and in its training mode."""
    name = type(old).__name__
    chained = name in edge_embedding.PARTS
    new = edge_embedding.replace(old, model) if chained else SWAPS[name].fast(old)
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
    """``{"enable_FastMLIP": ...}`` for a model with a module of this folder, else ``{}``."""
    known = any(judge(module, model) for module in model.modules())
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
            Enable fastmlip's fused operators, on CPUs and GPUs.
            """
            return accelerate(model)

    return FastMLIP.enable_FastMLIP

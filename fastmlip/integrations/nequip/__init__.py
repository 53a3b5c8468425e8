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

from fastmlip import nn
from fastmlip.integrations.nequip import (
    edge_embedding,
    force_stress,
    gate,
    interaction_block,
    per_type_scale_shift,
    tabulate,
    tensor_product_scatter,
    zbl,
)


class Swap(NamedTuple):
    """What takes the place of a host class: a module of the class ``fast``, from
    ``make(old, model)``, or ``fast(old)`` where ``make`` is not given.

    ``judge(module, model)`` says why a module cannot be swapped, nothing where it can, and is None
    where another module's row says what becomes of it."""

    fast: type
    judge: Callable[[torch.nn.Module, torch.nn.Module], str | None]
    make: Callable[[torch.nn.Module, torch.nn.Module], torch.nn.Module] | None = None


def _by_itself(unsupported: Callable[[torch.nn.Module], str]) -> Callable[..., str]:
    return lambda module, model: unsupported(module)


SWAPS = {
    "TensorProductScatter": Swap(
        tensor_product_scatter.FastTensorProductScatter,
        _by_itself(tensor_product_scatter.unsupported),
    ),
    "InteractionBlock": Swap(
        interaction_block.FastInteractionBlock, interaction_block.judge, interaction_block.replace
    ),
    **{
        name: Swap(fast, edge_embedding.judge, edge_embedding.replace)
        for name, fast in edge_embedding.PARTS.items()
    },
    "SphericalHarmonics": Swap(
        edge_embedding.FastSphericalHarmonics, edge_embedding.judge_harmonics
    ),
    "PerTypeScaleShift": Swap(
        per_type_scale_shift.FastPerTypeScaleShift,
        _by_itself(per_type_scale_shift.unsupported),
        per_type_scale_shift.replace,
    ),
    "ForceStressOutput": Swap(
        force_stress.FastForceStressOutput, force_stress.judge, force_stress.replace
    ),
    "Gate": Swap(gate.FastGate, _by_itself(gate.unsupported), gate.replace),
    "ZBL": Swap(zbl.FastZBL, _by_itself(zbl.unsupported)),
}
# modules of fastmlip.nn that a config can name itself count as swapped
FAST = (*(swap.fast for swap in SWAPS.values()), nn.Gate, nn.PerTypeScaleShift, nn.ZBL)


def judge(module: torch.nn.Module, model: torch.nn.Module) -> tuple[str, str] | None:
    """``(status, reason)`` of a module of ``model`` that this folder knows, None for any other."""
    if isinstance(module, FAST):
        return "swapped", getattr(module, "remark", "")
    name = type(module).__name__
    host = next((host for host in SWAPS if name.endswith(host)), None)
    if host is None or name.startswith("_"):  # _ZBL is a part of ZBL
        return None
    if name != host:
        other = "kept", f"{name} is another accelerated kernel already"
        return None if host in (*edge_embedding.PARTS, "ForceStressOutput") else other
    reason = SWAPS[host].judge(module, model)
    if reason is None:
        return None
    return ("kept", reason) if reason else ("ready", "")


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The new module for a ``ready`` one of ``model``, on its device and in its training mode."""
    swap = SWAPS[type(old).__name__]
    new = swap.make(old, model) if swap.make else swap.fast(old)
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
    """``{"enable_FastMLIP": ...}`` for a model with a module of this folder, else ``{}``; and our
    ``modify_PerTypeScaleShift`` for a model with our modules of that kind."""
    found = {}
    if any(judge(module, model) for module in model.modules()):
        found["enable_FastMLIP"] = _modifiers().enable_FastMLIP
        found["enable_FastMLIP_tabulated"] = _modifiers().enable_FastMLIP_tabulated
    if any(per_type_scale_shift.is_ours(module) for module in model.modules()):
        found["modify_PerTypeScaleShift"] = _modifiers().modify_PerTypeScaleShift
    return found


@cache
def _modifiers() -> Any:
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

        @model_modifier(
            persistent=False,
            private=False,
            unsupported_devices=[],
            supported_compile_modes=["eager", "aotinductor"],
        )
        @classmethod
        def enable_FastMLIP_tabulated(cls, model: torch.nn.Module, tol: float | None = None):
            """
            Enable fastmlip's fused operators with tabulated radial networks, for inference;
            ``tol`` is the largest error of a force component on the probe structures.
            """
            tabulate.refuse_training()
            tabulate.tabulate_(accelerate(model), tol)
            return model

        @model_modifier(persistent=True, private=False)
        @classmethod
        def modify_PerTypeScaleShift(cls, model: torch.nn.Module, **changes: Any):
            """
            Modify per-type scales and shifts: ``scales``, ``shifts``, each a number or a dict by
            type name, and ``scales_trainable``, ``shifts_trainable``.
            """
            return per_type_scale_shift.modify(model, **changes)

    return FastMLIP

"""What NequIP calls of fastmlip, through the top-level module ``fastmlip_nequip_plugin``.

The modifier ``enable_FastMLIP`` of ``nequip.model.modify``, ``nequip-compile --modifiers`` and
``nequip-prepare-lmp-mliap --modifiers`` is :func:`fastmlip.accelerate`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from fastmlip.integrations.gpu import MAY_BE_SLOW, TABULATED, is_on_gpu
from fastmlip.integrations.hosts import judge
from fastmlip.integrations.nequip import per_type_scale_shift, private
from fastmlip.integrations.nequip.tabulate import default_tolerance, refuse_training
from fastmlip.integrations.swap import accelerate
from fastmlip.integrations.tabulate import tabulate_


def modifiers(model: torch.nn.Module) -> dict[str, Callable[..., Any]]:
    """``{"enable_FastMLIP": ...}`` for a model with a module that a host knows, else ``{}``; and
    our ``modify_PerTypeScaleShift`` for a model with our modules of that kind."""
    found = {}
    if any(judge(module, model) for module in model.modules()):
        found["enable_FastMLIP"] = _modifiers().enable_FastMLIP
        found["enable_FastMLIP_tabulated"] = _modifiers().enable_FastMLIP_tabulated
    if any(per_type_scale_shift.is_ours(module) for module in model.modules()):
        found["modify_PerTypeScaleShift"] = _modifiers().modify_PerTypeScaleShift
    return found


def _warn_of_gpu(model: torch.nn.Module, text: str) -> None:
    """NequIP's commands modify a model before they move it."""
    if torch.cuda.is_available() and not is_on_gpu(model):
        warnings.warn(text, stacklevel=3)


@cache
def _modifiers() -> Any:
    model_modifier = private.model_modifier()

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
            _warn_of_gpu(model, MAY_BE_SLOW)
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
            refuse_training()
            _warn_of_gpu(model, TABULATED)
            tabulate_(accelerate(model), default_tolerance.get() if tol is None else tol)
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

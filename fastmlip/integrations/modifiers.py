"""What NequIP calls of fastmlip, through the top-level module ``fastmlip_nequip_plugin``.

The modifier ``enable_FastMLIP`` of ``nequip.model.modify``, ``nequip-compile --modifiers`` and
``nequip-prepare-lmp-mliap --modifiers`` is :func:`fastmlip.accelerate`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from fastmlip.backend import info
from fastmlip.integrations.gpu import NOT_TIMED, is_on_gpu
from fastmlip.integrations.host import KEPT, SWAPPED
from fastmlip.integrations.hosts import judge
from fastmlip.integrations.nequip import per_type_scale_shift, private
from fastmlip.integrations.nequip.tabulate import default_structures, refuse_training
from fastmlip.integrations.swap import accelerate, report
from fastmlip.integrations.tabulate import tabulate_


def modifiers(
    model: torch.nn.Module, theirs: Mapping[str, Callable[..., Any]]
) -> dict[str, Callable[..., Any]]:
    """What is offered for a model beside, or in place of, ``theirs``: ``enable_FastMLIP`` and its
    tabulated form where a host knows a module of it, and a ``modify_PerTypeScaleShift`` that keeps
    our modules ours, also where a modifier before it has put them there."""
    found = {}
    if any(judge(model)):
        found["enable_FastMLIP"] = _modifiers().enable_FastMLIP
        found["enable_FastMLIP_tabulated"] = _modifiers().enable_FastMLIP_tabulated
    other = theirs.get("modify_PerTypeScaleShift")
    if other or any(per_type_scale_shift.is_ours(module) for module in model.modules()):
        found["modify_PerTypeScaleShift"] = _modify_scale_shift(other)
    return found


def _warn_of_gpu(model: torch.nn.Module) -> None:
    """NequIP's commands modify a model before they move it."""
    if torch.cuda.is_available() and not is_on_gpu(model):
        warnings.warn(NOT_TIMED, stacklevel=3)


def _say_what_runs(model: torch.nn.Module) -> None:
    """One line in the log of a training run or of an export."""
    status, about = Counter(row.status for row in report(model)), info()
    private.logger().info(
        f"fastmlip {about['fastmlip']}: {status[SWAPPED]} modules swapped, {status[KEPT]} left as "
        f"they were; "
        f"CPU tensors: {about['cpu tensors']}, {about['instruction set']}; "
        f"GPU tensors: {about['gpu tensors']}"
    )


def _modify_scale_shift(other: Callable[..., Any] | None) -> Callable[..., Any]:
    class Modifier:
        @private.model_modifier()(persistent=True, private=False)
        @classmethod
        def modify_PerTypeScaleShift(cls, model: torch.nn.Module, **changes: Any):
            """
            Modify per-type scales and shifts: ``scales``, ``shifts``, each a number or a dict by
            type name, and ``scales_trainable``, ``shifts_trainable``.
            """
            return per_type_scale_shift.modify(model, other, **changes)

    modifier: Any = Modifier
    return modifier.modify_PerTypeScaleShift


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
        def enable_FastMLIP(
            cls, model: torch.nn.Module, per_edge_gradients: bool = False
        ) -> torch.nn.Module:
            """
            Enable fastmlip's fused operators, on CPUs and GPUs; ``per_edge_gradients`` where
            gradients of single edges are read.
            """
            _warn_of_gpu(model)
            accelerate(model, per_edge_gradients)
            _say_what_runs(model)
            return model

        @model_modifier(
            persistent=False,
            private=False,
            unsupported_devices=[],
            supported_compile_modes=["eager", "aotinductor"],
        )
        @classmethod
        def enable_FastMLIP_tabulated(cls, model: torch.nn.Module, tol: float | None = None):
            """
            Enable fastmlip's fused operators with tables of the distance, for inference;
            ``tol`` is the largest error of a force component on the probe structures.
            """
            refuse_training()
            _warn_of_gpu(model)
            tabulate_(accelerate(model), tol, default_structures.get())
            _say_what_runs(model)
            return model

    return FastMLIP

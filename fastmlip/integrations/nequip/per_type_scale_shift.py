"""NequIP's ``PerTypeScaleShift`` on :func:`fastmlip.ops.scale_shift`.

What takes its place is of a class derived from the host's own (which a packaged model brings
itself), with the same constructor: so all that NequIP finds by class keeps working, the modifier
``modify_PerTypeScaleShift`` among it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fastmlip.integrations.derived import Derived, empty
from fastmlip.nn import PerTypeScaleShift
from fastmlip.nn.scale_shift import TYPES, apply

HOST_ATTRIBUTES = (
    "type_names", "field", "out_field", "out_dtype", "has_scales", "has_shifts", "scales",
    "shifts", "scales_trainable", "shifts_trainable", "irreps_in", "irreps_out",
)  # fmt: skip


class FastPerTypeScaleShift(Derived):
    """What the derived class has in place of the host's."""

    _nequip_custom_ops_libs = ("fastmlip",)  # imported before a compiled model is loaded

    def forward(self: Any, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``data`` with ``out_field`` set."""
        data[self.out_field] = apply(self, data[self.field], data[TYPES])
        return data


def replace(old: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The same parameters, buffers and attributes in a module of the fast class.

    Raises:
        ValueError: a scale or shift that is NaN or infinite, with the type's name.
    """
    host: Any = old
    for name in ("scales", "shifts"):
        values = getattr(host, name).flatten().tolist()
        labels = host.type_names if len(values) > 1 else ["all types"]
        for label, value in zip(labels, values, strict=False):  # nothing where there are none
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite value, got {value} for {label}")
    new = empty(FastPerTypeScaleShift, type(old))
    for name, value in old.__dict__.items():
        new.__dict__[name] = value.copy() if isinstance(value, dict) else value
    return new


def unsupported(module: torch.nn.Module) -> str:
    """Why a ``PerTypeScaleShift`` cannot be swapped; empty where it can."""
    missing = [name for name in HOST_ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"an unknown version of NequIP's class, without {', '.join(missing)}"
    host: Any = module
    for name in ("scales", "shifts"):
        values = getattr(host, name)
        if getattr(host, f"has_{name}") and values.shape not in ((1, 1), (len(host.type_names), 1)):
            return f"its {name} have the shape {tuple(values.shape)}"
        if getattr(host, f"has_{name}") and values.dtype is not torch.float64:
            return f"its {name} are {values.dtype}, not float64"
    return ""


def is_ours(module: torch.nn.Module) -> bool:
    """Whether :func:`modify` knows the module."""
    return isinstance(module, (PerTypeScaleShift, FastPerTypeScaleShift))


def modify(
    model: torch.nn.Module,
    other: Callable[..., Any] | None,
    scales: Any = None,
    shifts: Any = None,
    scales_trainable: bool = False,
    shifts_trainable: bool = False,
) -> torch.nn.Module:
    """What NequIP's ``modify_PerTypeScaleShift`` does, for the modules of fastmlip.

    New values are one number or a dict by type name; types that a dict leaves out keep theirs, and
    where a model had none they get the scale 1 or the shift 0. ``other``, NequIP's own modifier,
    does it where a module is not ours.
    """
    changes = (scales, shifts, scales_trainable, shifts_trainable)
    for parent in list(model.modules()):
        for name, old in list(parent._modules.items()):
            if old is None:
                continue
            if is_ours(old):
                parent._modules[name] = _modified(old, *changes)
            elif other is not None and type(old).__name__ == "PerTypeScaleShift":
                parent._modules[name] = other(torch.nn.ModuleDict({name: old}), *changes)[name]
    return model


def _modified(old: Any, scales, shifts, scales_trainable, shifts_trainable) -> torch.nn.Module:
    new = type(old)(
        type_names=old.type_names,
        field=old.field,
        out_field=old.out_field,
        scales=_merged("scales", scales, old, 1.0),
        shifts=_merged("shifts", shifts, old, 0.0),
        scales_trainable=scales_trainable,
        shifts_trainable=shifts_trainable,
        irreps_in=old.irreps_in,
    )
    tensor = next((t for t in (old.scales, old.shifts) if t.numel()), None)
    return new.to(device=None if tensor is None else tensor.device).train(old.training)


def _merged(name: str, given: Any, old: Any, neutral: float) -> dict[str, float] | None:
    values = getattr(old, name).detach().flatten().tolist()
    if given is None and not values:
        return None
    if not values:
        values = [neutral]
    if len(values) == 1:
        values = values * len(old.type_names)
    merged = dict(zip(old.type_names, values, strict=True))
    if given is None:
        return merged
    if not hasattr(given, "items"):
        return dict.fromkeys(old.type_names, given)
    unknown = [key for key in given if key not in merged]
    if unknown:
        raise ValueError(
            f"{name}: expected type names of the model, {old.type_names}, unknown: {unknown}"
        )
    return merged | dict(given)

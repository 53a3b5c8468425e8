"""Module of :mod:`fastmlip.ops.scale_shift`, which states the formula."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from e3nn.o3 import Irreps

from fastmlip import ops

TYPES = "atom_types"
SINGLE_SCALAR = "0e"


class PerTypeScaleShift(torch.nn.Module):
    """Scales and shifts per-atom energies by type, as ``nequip.nn.PerTypeScaleShift`` does.

    ``forward`` takes a dict of tensors, reads ``field`` and ``atom_types``, and writes
    ``out_field`` in float64 whatever the dtype of ``field``.

    Args:
        type_names: names of the types, in the order of their numbers.
        field: energies of atoms, ``[N]`` or ``[N, 1]``.
        out_field: where the result goes; ``field`` where not given.
        scales: None; one value for all types; a dict from type name to value; or a list with a
            value for each of ``type_names``, in their order. Dimensionless where ``field`` is in
            the units of energy already.
        shifts: likewise, in the units of energy (eV in NequIP): the energies of isolated atoms.
        scales_trainable: whether scales are parameters. If so each type has its own, also where
            one value was given; if not, one value takes a path that reads no types.
        shifts_trainable: likewise for shifts.
        irreps_in: irreps of the fields that come in; that of ``field`` must be ``1x0e``.

    Raises:
        ValueError: a wrong number of values, an unknown or a missing type name, or a value that is
            NaN or infinite, each with the name of the type.
        TypeError: values of another kind.
    """

    _is_graph_module_mixin = True  # how NequIP knows modules that work on its dicts
    _nequip_custom_ops_libs = ("fastmlip",)  # imported before a compiled model is loaded

    scales: torch.Tensor
    shifts: torch.Tensor

    def __init__(
        self,
        type_names: Sequence[str],
        field: str,
        out_field: str | None = None,
        scales: Any = None,
        shifts: Any = None,
        scales_trainable: bool = False,
        shifts_trainable: bool = False,
        irreps_in: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.type_names = list(type_names)
        self.num_types = len(self.type_names)
        if not self.num_types or len(set(self.type_names)) != self.num_types:
            raise ValueError(f"type_names: expected names that differ, got {self.type_names}")
        self.field = field
        self.out_field = field if out_field is None else out_field
        self._set_irreps(dict(irreps_in or {}))
        self.out_dtype = torch.float64
        self.has_scales, self.has_shifts = scales is not None, shifts is not None
        self.scales_trainable, self.shifts_trainable = scales_trainable, shifts_trainable
        self._set("scales", scales, scales_trainable)
        self._set("shifts", shifts, shifts_trainable)

    def _set_irreps(self, irreps: dict[str, Any]) -> None:
        fixed = {key: value if value is None else Irreps(value) for key, value in irreps.items()}
        found = fixed.setdefault(self.field, Irreps(SINGLE_SCALAR))
        if found != Irreps(SINGLE_SCALAR):
            raise ValueError(
                f"irreps_in: expected 1x0e, one scalar, for the field '{self.field}', got {found}"
            )
        fixed |= {"pos": Irreps("1o"), "edge_index": None, TYPES: None}
        self.irreps_in, self.irreps_out = fixed, {**fixed, self.out_field: found}

    def _set(self, name: str, given: Any, trainable: bool) -> None:
        """A parameter or buffer ``[num_types, 1]`` or ``[1, 1]``; empty where nothing is given."""
        if given is None:
            return self.register_buffer(name, torch.empty(0))
        values = as_list(name, given, self.type_names)
        if trainable and len(values) == 1:
            values = values * self.num_types
        tensor = torch.tensor(values, dtype=torch.float64).reshape(-1, 1)
        if trainable:
            return self.register_parameter(name, torch.nn.Parameter(tensor))
        return self.register_buffer(name, tensor)

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``data`` with ``out_field`` set, shaped like ``field``. Types may be more than energies:
        those of ghost atoms, at the end, are not read."""
        data[self.out_field] = apply(self, data[self.field], data[TYPES])
        return data

    def extra_repr(self) -> str:
        rows = []
        for name in ("scales", "shifts"):
            values = getattr(self, name).flatten().tolist()
            if len(values) == self.num_types:
                pairs = zip(self.type_names, values, strict=True)
                text = ", ".join(f"{key}: {value:.6f}" for key, value in pairs)
            else:
                text = f"all types: {values[0]:.6f}" if values else "none"
            rows.append(f"{name}: {text}")
        return "\n".join(rows)


def apply(module: Any, x: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """The operator on the ``scales`` and ``shifts`` of a module, of this class or of NequIP's."""
    scales = _held(module, "scales") if module.has_scales else None
    shifts = _held(module, "shifts") if module.has_shifts else None
    if scales is None and shifts is None:
        return x.to(torch.float64)
    return ops.scale_shift(x, types, scales, shifts)


def _held(module: Any, name: str) -> torch.Tensor:
    """A buffer or parameter, past ``nn.Module.__getattr__``: two are a tenth of 10 atoms' time."""
    buffer = module._buffers.get(name)
    return getattr(module, name) if buffer is None else buffer


def as_list(name: str, given: Any, type_names: Sequence[str]) -> list[float]:
    """One value, or one for each of ``type_names``: a dict's in that order. See the class."""
    if hasattr(given, "tolist"):  # of NumPy or torch
        given = given.tolist()
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in type_names]
        missing = [key for key in type_names if key not in given]
        if unknown or missing:
            raise ValueError(
                f"{name}: expected a value for each of the type names {list(type_names)}, "
                f"unknown: {unknown}, missing: {missing}"
            )
        values, labels = [given[key] for key in type_names], list(type_names)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != len(type_names):
            raise ValueError(
                f"{name}: expected {len(type_names)} values, one for each of the type names "
                f"{list(type_names)}, got {len(given)}: {_unmatched(given, type_names)}"
            )
        values, labels = list(given), list(type_names)
    else:
        values, labels = [given], ["all types"]
    for label, value in zip(labels, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                f"{name}: expected a number, a dict by type name or a list, "
                f"got {value!r} for {label}"
            )
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite value, got {value} for {label}")
    return [float(value) for value in values]


def _unmatched(given: Sequence[Any], type_names: Sequence[str]) -> str:
    if len(given) < len(type_names):
        return f"no value for {list(type_names)[len(given) :]}"
    return f"no type name for {list(given)[len(type_names) :]}"

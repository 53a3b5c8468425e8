"""Models by name, for timings and counts: NequIP's presets with fresh weights, always the same."""

from __future__ import annotations

import warnings
from typing import Any

from fastmlip.integrations.host import HostModel
from fastmlip.integrations.nequip import private
from fastmlip.integrations.nequip.models import host_model

PRESETS = {f"NequIP-{size}": size for size in ("S", "M", "L", "XL")}
TYPE_NAMES = ["Cu", "Pd", "Au"]


def preset(name: str, dtype: str = "float32") -> HostModel:
    """One of ``PRESETS``: three types, a cutoff of 5 Angstrom, in evaluation mode.

    Raises:
        ValueError: an unknown name.
    """
    from nequip.model import PresetNequIPGNNModel

    if name not in PRESETS:
        raise ValueError(f"expected one of {', '.join(PRESETS)}, got {name!r}")
    with private.float64_default(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = PresetNequIPGNNModel(
            preset=PRESETS[name], seed=1, model_dtype=dtype, type_names=TYPE_NAMES, r_max=5.0,
            avg_num_neighbors=40.0, per_type_energy_scales=1.0, per_type_energy_shifts=0.0,
        )  # fmt: skip
    host = host_model(model.eval())
    host.origin = name
    return host

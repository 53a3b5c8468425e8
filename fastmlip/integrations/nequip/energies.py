"""Scales and shifts of a model's energies as a config gives them: lists, too.

NequIP's and Allegro's models promise "as many values as the number of atom types", and NequIP 0.19
takes numbers and complete dicts only. Where a config asks for ``enable_FastMLIP``, a list is a
value for each of ``type_names``, and what does not fit is an error that names the types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastmlip.nn.scale_shift import as_list

KEYS = ("per_type_energy_scales", "per_type_energy_shifts")


def by_type_name(settings: Any) -> Any:
    """A model's config with scales and shifts as NequIP takes them; ``settings`` stays as it is.

    Raises:
        ValueError: a list of another length than ``type_names``, an unknown or missing type name,
            a value that is NaN or infinite.
        TypeError: values of another kind.
    """
    if not isinstance(settings, Mapping):
        return settings
    settings = dict(settings)
    if "model" in settings:
        settings["model"] = by_type_name(settings["model"])
    names = settings.get("type_names")
    for key in KEYS:
        given = settings.get(key)
        several = isinstance(given, (Mapping, Sequence)) and not isinstance(given, str)
        if isinstance(names, Sequence) and not isinstance(names, str) and several:
            values = as_list(key, given, list(names))
            settings[key] = dict(zip(names, values, strict=True))
    return settings

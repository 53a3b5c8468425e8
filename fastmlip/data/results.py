"""What a pass over a data set found: a dict that says why, where a statistic is not there."""

from __future__ import annotations

import warnings
from typing import Any


class StatisticUnavailableError(ValueError):
    """A statistic was asked for that the data do not determine; the message says why."""


class Statistics(dict[str, Any]):
    """Floats, and dicts from type name to float, by the names of :data:`STATISTICS`.

    Reading an entry by ``[name]`` or ``get(name)``, as ``${training_data_stats:name}`` does, raises
    :class:`StatisticUnavailableError` for a statistic that could not be computed, and warns where
    its numbers need care.

    Attributes:
        num_frames, num_atoms: what was read.
        atoms_per_type: number of atoms of each type.
        nan_counts: NaN values by field, only of fields that have any.
        unavailable: reasons by statistic.
        notes: what needs care, by statistic.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_frames = 0
        self.num_atoms = 0
        self.atoms_per_type: dict[str, int] = {}
        self.nan_counts: dict[str, int] = {}
        self.unavailable: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def __missing__(self, name: str) -> Any:
        if name in self.unavailable:
            raise StatisticUnavailableError(f"{name}: {self.unavailable[name]}")
        raise KeyError(name)

    def __getitem__(self, name: str) -> Any:
        if name in self.notes:
            warnings.warn(f"{name}: {self.notes[name]}", stacklevel=2)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict; raises, like ``[name]``, for a statistic that could not be computed."""
        return self[name] if name in self or name in self.unavailable else default

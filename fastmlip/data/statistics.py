"""Statistics of a data set that serve as parameters of a model, in one pass over its batches.

For atoms i of type t_i in frames f of n_f atoms, with energies E_f, forces F_i and, in the
neighbour list, ``edge_index[0]`` as the atom whose neighbour ``edge_index[1]`` is::

    num_neighbors_mean           edges / atoms                          (= avg_num_neighbors)
    per_type_num_neighbors_mean  edges of atoms of a type / its atoms
    per_type_pair_num_neighbors_mean   key A_B: B neighbours of an A atom, on average
    per_atom_energy_mean         mean over f of E_f / n_f               energy
    per_atom_energy_std          standard deviation over f of E_f / n_f energy
    total_energy_std             standard deviation over f of E_f       energy
    forces_rms                   sqrt(mean over i and x, y, z of F_i^2) energy / length
    per_type_forces_rms          the same over the atoms of a type      energy / length
    per_type_energy_lstsq        argmin over e of sum_f (E_f - sum_t n_ft e_t)^2    energy
    isolated_atom_energies       E_f of frames of one atom without neighbours       energy

Standard deviations have n - 1 in the denominator. Units are those of the data. All sums are
float64, whatever the data are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch

from fastmlip.data.results import Statistics, StatisticUnavailableError
from fastmlip.data.seen import EDGES, ENERGY, FORCES, TYPES, Seen

Tensor = torch.Tensor
logger = logging.getLogger(__name__)

SAME = 1e-3  # isolated atoms of one type whose energies differ by more get a note


class Statistic(NamedTuple):
    """Fields a statistic is made from, and its value: one number, or one for each type or pair."""

    fields: tuple[str, ...]
    value: Callable[[Seen], Tensor]
    per: str = ""
    note: Callable[[Seen], str] = lambda seen: ""


def _forces_rms(seen: Seen) -> Tensor:
    count, mean = seen.squared_forces.count, seen.squared_forces.mean
    return (count @ mean / count.sum()).sqrt()


def _lstsq_note(seen: Seen) -> str:
    """Names the types whose energies the compositions do not determine."""
    _, unknown = seen.lstsq.solve()
    linked = unknown.abs() > 1e-6
    names, notes = seen.type_names, []
    absent = [name for name, count in zip(names, seen.atoms.tolist(), strict=True) if count == 0]
    if absent:
        notes.append(f"{', '.join(absent)} never occurs in the data and got 0")
    left = {i for i, name in enumerate(names) if linked[i, i] and name not in absent}
    while left:
        group: set[int] = set()
        grown = {min(left)}
        while grown != group:
            group, grown = grown, {j for i in grown for j in left if linked[i, j]} | grown
        left -= group
        together = ", ".join(names[i] for i in sorted(group))
        notes.append(
            f"the compositions of the data cannot tell {together} apart: of all equally good "
            "energies these have the smallest sum of squares"
        )
    return "; ".join(notes)


def _isolated_note(seen: Seen) -> str:
    spread = seen.isolated.std().nan_to_num(0.0)
    differ = [name for name, x in zip(seen.type_names, spread.tolist(), strict=True) if x > SAME]
    return f"isolated atoms of type {', '.join(differ)} differ in energy" if differ else ""


STATISTICS = {
    "num_neighbors_mean": Statistic((EDGES,), lambda s: s.neighbors.sum() / s.atoms.sum()),
    "avg_num_neighbors": Statistic((EDGES,), lambda s: s.neighbors.sum() / s.atoms.sum()),
    "per_type_num_neighbors_mean": Statistic(
        (EDGES, TYPES), lambda s: s.neighbors / s.atoms, "type"
    ),
    "per_type_pair_num_neighbors_mean": Statistic(
        (EDGES, TYPES), lambda s: (s.pairs / s.atoms[:, None]).flatten(), "pair"
    ),
    "per_atom_energy_mean": Statistic((ENERGY,), lambda s: s.per_atom_energy.means()),
    "per_atom_energy_std": Statistic((ENERGY,), lambda s: s.per_atom_energy.std()),
    "total_energy_std": Statistic((ENERGY,), lambda s: s.total_energy.std()),
    "per_type_energy_lstsq": Statistic(
        (ENERGY, TYPES), lambda s: s.lstsq.solve()[0], "type", _lstsq_note
    ),
    "isolated_atom_energies": Statistic(
        (ENERGY, TYPES, EDGES), lambda s: s.isolated.means(), "type", _isolated_note
    ),
    "forces_rms": Statistic((FORCES,), _forces_rms),
    "per_type_forces_rms": Statistic(
        (FORCES, TYPES), lambda s: s.squared_forces.means().sqrt(), "type"
    ),
}
ENERGY_ONLY = (
    "num_neighbors_mean", "avg_num_neighbors", "per_type_num_neighbors_mean",
    "per_atom_energy_mean", "per_atom_energy_std", "total_energy_std", "per_type_energy_lstsq",
    "isolated_atom_energies",
)  # fmt: skip
COMMON = (*ENERGY_ONLY, "forces_rms", "per_type_forces_rms")
# numbers of neighbours that models divide by
DIVISORS = ("num_neighbors_mean", "avg_num_neighbors", "per_type_num_neighbors_mean")
REACH = "take a larger r_max, or give the value by hand"
HINTS = {
    TYPES: "add nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper to the data's transforms",
    EDGES: "add nequip.data.transforms.NeighborListTransform to the data's transforms",
    ENERGY: "map the key of your file to it with key_mapping",
    FORCES: "use fastmlip.data.EnergyOnlyDatasetStatistics, or map the key of your file to it "
    "with key_mapping",
}


class DatasetStatistics:
    """Statistics of a data set by name, as a ``stats_manager`` of a NequIP config.

    Args:
        statistics: names to compute, those of :data:`STATISTICS`.
        dataloader_kwargs: arguments of the ``DataLoader`` that override those of the training one.
        type_names: of the model, in its order; needed for the ``per_type`` statistics.
        ignore_nan: skip NaN energies and NaN force components, and count them in ``nan_counts``.
            Otherwise statistics of a field with NaN are refused when they are asked for.
        skip_missing: refuse statistics of a field that the data lack when they are asked for,
            instead of raising at the first batch.
        progress: show a progress bar.

    Raises:
        ValueError: an unknown name; no ``type_names`` for a per-type statistic; reserved arguments
            in ``dataloader_kwargs``. While reading: a field that the data lack, a type outside
            ``type_names``, energies that do not fit the frames.
    """

    def __init__(
        self,
        statistics: Sequence[str],
        dataloader_kwargs: Mapping[str, Any] | None = None,
        type_names: Sequence[str] | None = None,
        ignore_nan: bool = False,
        skip_missing: bool = False,
        progress: bool = False,
    ) -> None:
        unknown = [name for name in statistics if name not in STATISTICS]
        if unknown or not statistics:
            raise ValueError(f"statistics: expected names of {list(STATISTICS)}, got {unknown}")
        per_type = [name for name in statistics if STATISTICS[name].per]
        if type_names is None and per_type:
            raise ValueError(f"type_names: needed for {', '.join(per_type)}")
        reserved = {"dataset", "generator", "collate_fn"} & set(dataloader_kwargs or {})
        if reserved:
            raise ValueError(f"dataloader_kwargs: {sorted(reserved)} are set by the data module")
        self.names = list(dict.fromkeys(statistics))
        self.dataloader_kwargs = dataloader_kwargs if dataloader_kwargs is not None else {}
        self.type_names = [str(name) for name in type_names or ()]
        self.ignore_nan = ignore_nan
        self.skip_missing = skip_missing
        self.progress = progress
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.seen = Seen(self.type_names, self.names)
        self.missing: dict[str, str] = {}
        self._fields: set[str] | None = None
        self.stats_dict: Statistics = Statistics()

    # ------------------------------------------------------------ reading

    def __call__(self, data: Mapping[str, Tensor]) -> None:
        self.update(data)

    @torch.no_grad()
    def update(self, data: Mapping[str, Tensor]) -> None:
        """Add one batch: a dict of tensors with NequIP's field names."""
        if self._fields is None:
            self._fields = self._fields_to_read(data)
        self.seen.add(data, self._fields)

    def _fields_to_read(self, data) -> set[str]:
        needed: dict[str, list[str]] = {}
        for name in self.names:
            for field in STATISTICS[name].fields:
                needed.setdefault(field, []).append(name)
        for field in [field for field in needed if field not in data]:
            reason = f"the data have no field {field!r} (they have {', '.join(sorted(data))})"
            if not self.skip_missing:
                raise ValueError(f"{reason}, needed for {', '.join(needed[field])}; {HINTS[field]}")
            self.missing.update(dict.fromkeys(needed.pop(field), f"{reason}; {HINTS[field]}"))
        wanted = [name for name in self.names if name not in self.missing]
        return {field for name in wanted for field in STATISTICS[name].fields}

    def merge(self, other: DatasetStatistics) -> None:
        """Add all that ``other``, made with the same arguments, has seen."""
        if (self.names, self.type_names) != (other.names, other.type_names):
            raise ValueError("other: expected the same statistics and type_names")
        self.seen.merge(other.seen)
        self.missing.update(other.missing)

    # ------------------------------------------------------------ results

    def get_statistics(self, data_source: Iterable[Mapping[str, Tensor]]) -> Statistics:
        """Read all batches of ``data_source`` and compute."""
        self.reset()
        if self.progress:
            from rich.console import Console
            from rich.progress import track

            console = Console(stderr=True)
            data_source = track(data_source, "dataset statistics", console=console)
        for data in data_source:
            self.update(data)
        return self.compute()

    def compute(self) -> Statistics:
        """The statistics of the batches so far: floats, and dicts from type name to float."""
        if self.seen.num_frames == 0:
            raise ValueError("no frames were read: the data set is empty")
        result = Statistics()
        result.num_frames = self.seen.num_frames
        result.num_atoms = int(self.seen.atoms.sum())
        result.atoms_per_type = dict(zip(self.type_names, map(int, self.seen.atoms), strict=False))
        result.nan_counts = dict(self.seen.nan_counts)
        absent = [name for name, count in result.atoms_per_type.items() if count == 0]
        if absent and any(TYPES in STATISTICS[name].fields for name in self.names):
            logger.warning("types that never occur in the data: %s", ", ".join(absent))
        for field, count in self.seen.nan_counts.items():
            logger.warning("%d NaN values in %r%s", count, field, ", skipped" * self.ignore_nan)
        for name in self.names:
            try:
                value = self._value(name)
            except StatisticUnavailableError as error:
                result.unavailable[name] = str(error)
                logger.info("%s: left out, %s", name, error)
                continue
            result[name] = value
            logger.info("%s: %s", name, value)
            if note := STATISTICS[name].note(self.seen):
                result.notes[name] = note
        self.stats_dict = result
        return result

    def _value(self, name: str) -> float | dict[str, float]:
        if name in self.missing:
            raise StatisticUnavailableError(self.missing[name])
        fields, formula, per, _ = STATISTICS[name]
        for field in fields:
            nan = self.seen.nan_counts.get(field, 0)
            if nan and not self.ignore_nan:
                raise StatisticUnavailableError(
                    f"{nan} values of {field!r} are NaN; `ignore_nan: true` of the stats_manager "
                    "skips and counts them"
                )
        value = formula(self.seen).reshape(-1)
        bad = torch.nonzero(~value.isfinite()).flatten().tolist()
        if name in DIVISORS and not bad:  # the model divides by it
            bad = torch.nonzero(value == 0).flatten().tolist()
        if per == "pair":
            bad = [index // len(self.type_names) for index in bad]
        if bad:
            raise StatisticUnavailableError(self._why_not(name, dict.fromkeys(bad)))
        values = value.tolist()
        if per == "type":
            return dict(zip(self.type_names, values, strict=True))
        if per == "pair":
            pairs = product(self.type_names, self.type_names)
            names = [f"{center}_{neighbor}" for center, neighbor in pairs]
            return dict(zip(names, values, strict=True))
        return values[0]

    def _why_not(self, name: str, bad: Iterable[int]) -> str:
        """Why a statistic is not finite, for the types ``bad`` if it is one for each type."""
        if STATISTICS[name].per:
            absent = [self.type_names[i] for i in bad if self.seen.atoms[i] == 0]
            if absent:
                return (
                    f"type {', '.join(absent)} never occurs in the data; take it out of "
                    "type_names, or give the values by hand"
                )
            types = ", ".join(self.type_names[i] for i in bad)
            if name in DIVISORS:
                return f"no atom of type {types} has a neighbour, and models divide by it; {REACH}"
            if name == "isolated_atom_energies":
                return (
                    f"no frame holds a single atom without neighbours of type {types}; use "
                    "per_type_energy_lstsq, or give these energies by hand"
                )
            return f"it is not finite for type {types}"
        if name.endswith("_std") and self.seen.total_energy.count < 2:
            return "a standard deviation needs at least two frames with an energy"
        if name in DIVISORS:
            return f"no atom has a neighbour, and models divide by it; {REACH}"
        return "it is not finite"


def CommonDatasetStatistics(
    dataloader_kwargs: Mapping[str, Any] | None = None,
    type_names: Sequence[str] | None = None,
    **options: Any,
) -> DatasetStatistics:
    """:class:`DatasetStatistics` of all names but those of type pairs.

    Args:
        dataloader_kwargs, type_names, options: of :class:`DatasetStatistics`.
    """
    return DatasetStatistics(COMMON, dataloader_kwargs, type_names, **options)


def EnergyOnlyDatasetStatistics(
    dataloader_kwargs: Mapping[str, Any] | None = None,
    type_names: Sequence[str] | None = None,
    **options: Any,
) -> DatasetStatistics:
    """:func:`CommonDatasetStatistics` without those of forces, for data that have none.

    Args:
        dataloader_kwargs, type_names, options: of :class:`DatasetStatistics`.
    """
    return DatasetStatistics(ENERGY_ONLY, dataloader_kwargs, type_names, **options)

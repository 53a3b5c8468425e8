"""Statistics of the data of a NequIP config, or of a file that ASE reads, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastmlip.data import COMMON, STATISTICS, CommonDatasetStatistics, Statistics
from fastmlip.data.seen import ENERGY, FORCES
from fastmlip.integrations.nequip.config import compose, find
from fastmlip.integrations.nequip.private import float64_default

TASKS = {"train": "fit", "val": "validate", "test": "test", "predict": "predict"}


def statistics_of_config(
    path: Path,
    type_names: Sequence[str] | None = None,
    dataset: str = "train",
    **options: Any,
) -> Statistics:
    """Statistics of one data set of a training config, with its transforms and neighbour lists.

    Args:
        path: the config; Hydra's defaults lists and overrides of other files work.
        type_names: default: those that the config's ``data`` section names.
        dataset: ``train``, ``val``, ``test`` or ``predict``; the first one, if there are several.
        options: ``batch_size``, and options of :class:`fastmlip.data.DatasetStatistics`.

    Raises:
        ValueError: the config has no data module, no type names, or not this data set.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if dataset not in TASKS:
        raise ValueError(f"dataset: expected one of {', '.join(TASKS)}, got {dataset!r}")
    with float64_default():
        config = compose(path)
        if "_target_" not in config.get("data", {}):
            raise ValueError(f"{path} has no section `data` with a `_target_`")
        data = OmegaConf.to_container(config.data, resolve=True)
        assert isinstance(data, dict)
        manager: Any = data.get("stats_manager") or {}
        type_names = type_names or manager.get("type_names") or find(data, "model_type_names")
        if not type_names:
            raise ValueError(f"{path}: `data` names no types, so type_names is needed")
        data["stats_manager"] = _manager_config(manager, type_names, **options)
        module = instantiate(data, _recursive_=False)
        if not module.num_datasets[dataset]:
            raise ValueError(f"{path} has no {dataset} data set")
        return module.get_statistics(dataset=dataset)


def _manager_config(manager, type_names, batch_size=None, ignore_nan=False, **options):
    """The config's own manager where it is one of ours, else all the common statistics."""
    loader = dict(manager.get("dataloader_kwargs") or {})
    if batch_size is not None:
        loader["batch_size"] = batch_size
    ours = str(manager.get("_target_", "")).startswith("fastmlip.data.")
    config = manager if ours else {"_target_": "fastmlip.data.CommonDatasetStatistics"}
    return {
        **config,
        **options,
        "skip_missing": True,
        "ignore_nan": ignore_nan or (ours and manager.get("ignore_nan", False)),
        "type_names": list(type_names),
        "dataloader_kwargs": loader,
    }


def statistics_of_file(
    path: Path,
    r_max: float,
    type_names: Sequence[str] | None = None,
    batch_size: int | None = None,
    energy_key: str | None = None,
    forces_key: str | None = None,
    **options: Any,
) -> Statistics:
    """Statistics of all frames of a file that ASE reads, such as extended XYZ.

    Args:
        path: the file.
        r_max: cutoff of the neighbour list, in the file's unit of length (ASE: Angstrom).
        type_names: chemical symbols; default: those in the file, by atomic number.
        batch_size: frames read at a time (default 16).
        energy_key, forces_key: names of these labels in the file; default: ``energy`` and
            ``forces``. Frames without a label that others have count as NaN.
        options: of :class:`fastmlip.data.DatasetStatistics`.

    Raises:
        ValueError: a cutoff that is not positive, a species outside ``type_names``, a key that was
            given and is in no frame.
    """
    from nequip.data.dataset import ASEDataset
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    if not r_max > 0:
        raise ValueError(f"r_max: expected a positive cutoff, got {r_max}")
    keys = {energy_key or "energy": ENERGY, forces_key or "forces": FORCES}
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        others = [key for key in ("energy", "forces") if key not in keys]  # would come before ours
        dataset = ASEDataset(str(path), key_mapping=keys, exclude_keys=others)
        absent = _absent_labels(path, dataset, keys, given=(energy_key, forces_key))
        _fill_with_nan(dataset)
        found = _species(dataset)
        names = list(type_names or found)
        unknown = [name for name in found if name not in names]
        if unknown:
            raise ValueError(f"{path} holds {', '.join(unknown)}, not in type_names {names}")
        dataset.transforms = [
            ChemicalSpeciesToAtomTypeMapper(
                model_type_names=names,
                chemical_species_to_atom_type_map={name: name for name in names},
            ),
            NeighborListTransform(r_max=r_max),
        ]
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=batch_size or 16, collate_fn=_collate
        )
        manager = CommonDatasetStatistics(type_names=names, skip_missing=True, **options)
        result = manager.get_statistics(loader)
    finally:
        torch.set_default_dtype(dtype)
    for name in result.unavailable:
        for field in absent.keys() & set(STATISTICS[name].fields):
            result.unavailable[name] = absent[field]
    return result


def _absent_labels(path, dataset, keys, given) -> dict[str, str]:
    """Labels that no frame of the file has, and what it has in their place."""
    absent = {}
    for key, field in keys.items():
        if not any(field in frame for frame in dataset.data_list):
            like = ", ".join(_keys_like(path, field)) or "none"
            said = f"no frame of {path} has {key!r}; keys of that kind: {like}"
            option = "--energy-key" if field == ENERGY else "--forces-key"
            if key in given:
                raise ValueError(f"{option}: {said}")
            absent[field] = f"{said} (name one with {option})"
    return absent


def _keys_like(path: Path, field: str) -> list[str]:
    """Keys of the file that may be energies, or forces, by their shape: the likelier ones first."""
    from ase.io import iread

    found: set[str] = set()
    for atoms in iread(str(path), parallel=False):
        results = {} if atoms.calc is None else atoms.calc.results
        if field == ENERGY:
            held = {**atoms.info, **results}
            found |= {key for key, value in held.items() if isinstance(value, (int, float))}
        else:
            held = {**atoms.arrays, **results}
            shape = (len(atoms), 3)
            found |= {key for key, value in held.items() if getattr(value, "shape", ()) == shape}
    found -= {"positions", "momenta"}
    word = "energy" if field == ENERGY else "force"
    return sorted(found, key=lambda key: (word not in key.lower(), key))


def _fill_with_nan(dataset) -> None:
    """So that frames which lack a label of others can be in one batch, and are counted."""
    frames = dataset.data_list
    for field in (ENERGY, FORCES):
        shape = next((frame[field].shape for frame in frames if field in frame), None)
        for frame in frames:
            if shape is not None and field not in frame:
                rows = (len(frame["pos"]), 3) if field == FORCES else shape
                frame[field] = torch.full(rows, torch.nan)


def _species(dataset) -> list[str]:
    from ase.data import chemical_symbols

    numbers = {int(z) for frame in dataset.data_list for z in frame["atomic_numbers"].unique()}
    return [chemical_symbols[z] for z in sorted(numbers)]


def _collate(frames):
    """A batch of what statistics read; other labels need not be in every frame."""
    from nequip.data import AtomicDataDict

    wanted = {"pos", "cell", "pbc", "edge_cell_shift", "batch", "num_atoms"}
    wanted |= {field for name in COMMON for field in STATISTICS[name].fields}
    return AtomicDataDict.batched_from_list(
        [{key: value for key, value in frame.items() if key in wanted} for frame in frames]
    )

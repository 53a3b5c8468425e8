"""Models of NequIP and Allegro from any file they come in, and structures in the form they take."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fastmlip.integrations.host import HostModel, readable
from fastmlip.integrations.nequip import private
from fastmlip.integrations.nequip.config import compose, find, placeholder_statistics

Tensor = torch.Tensor
DTYPES = {"float32": torch.float32, "float64": torch.float64}
TAKES = "a model of NequIP's or Allegro's, a GraphModel, or a path to a config (.yaml), a " + (
    "checkpoint (.ckpt), a package (.nequip.zip) or a compiled model (.nequip.pt2)"
)


class NequIPModel(HostModel):
    """Fed with NequIP's ``AtomicDataDict``."""

    def run(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        # a compiled model reads memory as if its inputs were contiguous
        dense = {key: value.contiguous() for key, value in data.items()}
        with without_ghost_exchange(self.model):
            return private.graph_model_forward(self.model)(dense)

    def frame(self, atoms: Any, types: Any) -> dict[str, Tensor]:
        from ase import Atoms
        from nequip.data import from_ase

        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        with private.float64_default():
            data = from_ase(bare)
            data["atom_types"] = torch.as_tensor(types, dtype=torch.long)
            return self.neighbours(data)

    def neighbours(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        from nequip.data.transforms import NeighborListTransform

        # edges are looked for among the atoms as they lie, which the CPU does
        device = data["pos"].device
        bare = {key: value.cpu() for key, value in data.items() if not key.startswith("edge_")}
        with private.float64_default():
            transform = NeighborListTransform(
                r_max=self.r_max,
                per_edge_type_cutoff=self.per_edge_type_cutoff,
                type_names=self.type_names,
            )
            return {key: value.to(device) for key, value in transform(bare).items()}

    def batch(self, frames: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        from nequip.data import AtomicDataDict

        return AtomicDataDict.batched_from_list(frames)


class _NoExchange(torch.nn.Module):
    def forward(self, data: dict[str, Any], ghost_included: bool) -> dict[str, Any]:
        return data


@contextlib.contextmanager
def without_ghost_exchange(model: torch.nn.Module) -> Iterator[None]:
    """For frames of all atoms there are: LAMMPS has ghost atoms, whose features its models
    exchange."""
    blocks: list[Any] = [m for m in model.modules() if hasattr(m, "ghost_exchange")]
    exchanges = [block.ghost_exchange for block in blocks]
    try:
        for block in blocks:
            block.ghost_exchange = _NoExchange()
        yield
    finally:
        for block, exchange in zip(blocks, exchanges, strict=True):
            block.ghost_exchange = exchange


def describe(model: torch.nn.Module) -> HostModel | None:
    """A ``GraphModel`` of NequIP's; None for anything else."""
    return host_model(model) if hasattr(model, "is_graph_model") else None


def host_model(model: torch.nn.Module) -> HostModel:
    """A ``GraphModel`` in memory, with what it takes to feed it."""
    return _described(model, type(model).__name__, "memory")


def _only(model: torch.nn.Module) -> torch.nn.Module:
    """Of the models that a file may hold."""
    if not isinstance(model, torch.nn.ModuleDict):
        return model
    if len(model) != 1:
        raise TypeError(f"expected one model, got the models {', '.join(model)}")
    return next(iter(model.values()))


def _described(model: Any, origin: str, kind: str) -> HostModel:
    metadata = model.metadata
    names = metadata["type_names"].split(" ")
    cutoffs = metadata.get("per_edge_type_cutoff")
    return NequIPModel(
        model, origin, kind, DTYPES[metadata["model_dtype"]], names, float(metadata["r_max"]),
        private.cutoffs_by_type(cutoffs, names) if isinstance(cutoffs, str) else cutoffs,
        _table_tolerance(metadata),
    )  # fmt: skip


def _table_tolerance(metadata: Mapping[str, str]) -> float:
    return float(metadata.get("fastmlip_table_tolerance", 0.0))


def load(path: Path, dtype: str | None, device: str) -> HostModel | None:
    """The stock model of a file; None for a kind of file that is not NequIP's.

    Raises:
        ValueError: the file cannot be read as what its name says.
    """
    for suffixes, (kind, reader) in _READERS.items():
        if path.name.endswith(suffixes):
            with private.float64_default(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if kind == "config":
                    return reader(path, dtype, device)
                with readable(path, kind):
                    return reader(path, dtype, device)
    return None


def _from_config(path: Path, dtype: str | None, device: str) -> HostModel:
    from omegaconf import OmegaConf

    config = compose(path)
    section = OmegaConf.select(config, "training_module.model", throw_on_missing=False)
    if section is None:
        raise ValueError(f"{path} has no section `training_module.model`")
    with placeholder_statistics(config) as placeholders:
        settings = OmegaConf.to_container(section, resolve=True)
    host = _build(settings, str(path), "config", dtype)
    host.notes += [f"{name} of the data taken to be {v}" for name, v in placeholders.items()]
    return host


def _build(settings: Any, origin: str, kind: str, dtype: str | None) -> HostModel:
    from hydra.utils import get_method

    dropped = _modifiers(settings)
    settings = _with_dtype(settings, dtype, origin)
    with private.stock_and_eager():
        model = get_method(settings.pop("_target_"))(**settings)
    host = _described(_only(model), origin, kind)
    host.notes += _about_modifiers(dropped)
    return host


def _with_dtype(settings: Any, dtype: str | None, origin: str) -> Any:
    if dtype is None:
        return dict(settings)
    holder = settings = _copied(settings)
    while isinstance(holder, dict) and "model_dtype" not in holder:
        holder = holder.get("model")
    if holder is None:
        raise ValueError(f"dtype: {origin} starts from a model that brings its own dtype")
    holder["model_dtype"] = dtype
    return settings


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _modifiers(settings: Any) -> list[str]:
    named = find(settings, "modifiers") or []
    return [str(entry.get("modifier")) for entry in named if isinstance(entry, dict)]


def _about_modifiers(named: list[str]) -> list[str]:
    others = [name for name in named if name != "enable_FastMLIP" and name.startswith("enable_")]
    return [f"modifiers that only accelerate are left out: {', '.join(others)}"] if others else []


def _from_checkpoint(path: Path, dtype: str | None, device: str) -> HostModel:
    from hydra.utils import get_class

    saved = read_checkpoint(path)["hyper_parameters"]
    settings = saved["model"]
    target = saved["info_dict"]["training_module"]["_target_"]
    with private.stock_and_eager():
        training: Any = get_class(target)
        module = training.load_from_checkpoint(
            path,
            map_location="cpu",
            weights_only=True,
            model=_with_dtype(settings, dtype, str(path)),
        )
        model = module.evaluation_model
    host = _described(_only(model), str(path), "checkpoint")
    host.notes += _about_modifiers(_modifiers(settings))
    return host


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint of NequIP holds: tensors and plain types; nothing in it is executed.

    Raises:
        ValueError: it is no checkpoint of NequIP's.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(saved, dict) or "model" not in saved.get("hyper_parameters", {}):
        raise ValueError(f"{path} is not a checkpoint of NequIP's: it has no `hyper_parameters`")
    return saved


def _from_package(path: Path, dtype: str | None, device: str) -> HostModel:
    from nequip.model import ModelFromPackage

    if dtype is not None:
        raise ValueError(f"dtype: {path} brings its own dtype")
    return _described(_only(ModelFromPackage(str(path))), str(path), "package")


def _from_compiled(path: Path, dtype: str | None, device: str) -> HostModel:
    if dtype is not None:
        raise ValueError(f"dtype: {path} brings its own dtype")
    model, metadata = private.load_compiled(str(path), device)
    host = NequIPModel(
        model, str(path), "compiled", DTYPES[metadata["model_dtype"]], metadata["type_names"],
        metadata["r_max"], metadata["per_edge_type_cutoff"], _table_tolerance(metadata),
    )  # fmt: skip
    host.notes.append(f"libraries it asks for: {metadata.get('nequip_custom_ops_libs', 'none')}")
    return host


_READERS = {
    (".nequip.zip",): ("package", _from_package),
    (".nequip.pt2", ".nequip.pth"): ("compiled model", _from_compiled),
    (".ckpt",): ("checkpoint", _from_checkpoint),
    (".yaml", ".yml"): ("config", _from_config),
}

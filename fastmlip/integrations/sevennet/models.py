"""Models of SevenNet from memory or checkpoints, and structures in the form they take.

Frames are those of :mod:`fastmlip.integrations.structures`, and so are the names of what comes out;
SevenNet's own graphs are made of them at every call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmlip.integrations.host import HostModel, readable

Tensor = torch.Tensor
TAKES = "a model of SevenNet's, an AtomGraphSequential, or a path to its checkpoint (.pth)"
SMALLEST_VOLUME = 1e-3  # that SevenNet divides by
VOIGT = (0, 3, 5, 3, 1, 4, 5, 4, 2)  # of 3 x 3 components, in xx, yy, zz, xy, yz, zx


@dataclass
class SevenNetModel(HostModel):
    """Fed with SevenNet's ``AtomGraphData``; of several modalities, the first."""

    def run(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        from sevenn.atom_graph_data import AtomGraphData

        model: Any = self.model
        is_batch = model.is_batch_data
        model.set_is_batch_data(True)
        try:
            out = model(AtomGraphData(**self._graph(data)))
        finally:
            model.set_is_batch_data(is_batch)
        energy = out["inferred_total_energy"].view(-1, 1)
        found = {"total_energy": energy, "atomic_energy": out["atomic_energy"].view(-1, 1)}
        if "inferred_force" in out:
            volume = _volumes(data)
            by_volume = out["inferred_stress"][:, VOIGT].view(-1, 3, 3)
            found["forces"] = out["inferred_force"]
            found["virial"] = by_volume * volume.clamp(min=SMALLEST_VOLUME).to(by_volume)
            found["stress"] = torch.where(volume > SMALLEST_VOLUME, -by_volume, torch.nan)
        return found

    def _graph(self, data: dict[str, Tensor]) -> dict[str, Any]:
        pos, edge_index, types = data["pos"], data["edge_index"], data["atom_types"].view(-1)
        batch = data["batch"] if "batch" in data else torch.zeros_like(types)
        cells = data["cell"].view(-1, 3, 3)[batch[edge_index[0]]]
        moved = torch.bmm(data["edge_cell_shift"].view(-1, 1, 3).to(cells), cells).view(-1, 3)
        vectors = pos[edge_index[1]] - pos[edge_index[0]] + moved
        numbers = self._numbers().to(types.device)[types]
        graph: dict[str, Any] = {
            "x": numbers, "atomic_numbers": numbers, "pos": pos, "edge_index": edge_index,
            "edge_vec": vectors.to(self.dtype), "batch": batch, "num_atoms": batch.bincount(),
            "cell_volume": _volumes(data).view(-1).to(self.dtype),
        }  # fmt: skip
        modalities = getattr(self.model, "modal_map", None)
        if modalities:
            graph["data_modality"] = [next(iter(modalities))] * int(batch.max() + 1)
        return graph

    def _numbers(self) -> Tensor:
        """Atomic numbers of the types."""
        model: Any = self.model
        return torch.tensor(sorted(model.type_map, key=model.type_map.get))

    def neighbours(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        from ase import Atoms
        from sevenn.train.dataload import unlabeled_atoms_to_graph

        device = data["pos"].device
        pos, cell, pbc = (data[name].detach().cpu().numpy() for name in ("pos", "cell", "pbc"))
        atoms = Atoms(f"X{len(pos)}", pos, cell=cell.reshape(3, 3), pbc=pbc.reshape(3))
        graph = unlabeled_atoms_to_graph(atoms, self.r_max, with_shift=True)
        edges = torch.as_tensor(graph["edge_index"], dtype=torch.long, device=device)
        shifts = torch.as_tensor(graph["pbc_shift"], dtype=torch.float64, device=device)
        return {**data, "edge_index": edges, "edge_cell_shift": shifts.view(-1, 3)}


def _volumes(data: dict[str, Tensor]) -> Tensor:
    """``[frames, 1, 1]``"""
    return torch.linalg.det(data["cell"].view(-1, 3, 3)).abs().view(-1, 1, 1)


def describe(model: torch.nn.Module) -> HostModel | None:
    """A whole model of SevenNet's; None for anything else."""
    is_ours = all(hasattr(model, n) for n in ("type_map", "set_is_batch_data", "edge_embedding"))
    return host_model(model) if is_ours else None


def host_model(model: torch.nn.Module) -> HostModel:
    """A whole model in memory, with what it takes to feed it."""
    return _described(model, type(model).__name__, "memory")


def _described(model: Any, origin: str, kind: str) -> HostModel:
    from ase.data import chemical_symbols

    numbers = sorted(model.type_map, key=model.type_map.get)
    dtype = next(p.dtype for p in model.parameters())
    names = [chemical_symbols[number] for number in numbers]
    about = getattr(model, "table_metadata", {})
    tolerance = float(about.get("fastmlip_table_tolerance", 0.0))
    harmonics = model.edge_embedding.spherical.irreps_out
    return SevenNetModel(
        model, origin, kind, dtype, names, float(model.cutoff), table_tolerance=tolerance,
        has_inversion=all(ir.p == (-1) ** ir.l for _, ir in harmonics),
    )  # fmt: skip


def load(path: Path, dtype: str | None, device: str) -> HostModel | None:
    """The stock model of a checkpoint; None for a kind of file that is not SevenNet's.

    Raises:
        ValueError: the file cannot be read as what its name says; another dtype than float32.
    """
    if path.suffix != ".pth":
        return None
    if dtype not in (None, "float32"):
        raise ValueError(f"dtype: SevenNet's models are float32 ones, got {dtype}")
    from sevenn.util import load_checkpoint

    with readable(path, "checkpoint of SevenNet's"):
        model = load_checkpoint(str(path)).build_model()
    return _described(model, str(path), "checkpoint")

"""Models of MACE's from memory or files, and structures in the form they take.

Frames are those of :mod:`fastmlip.integrations.structures`, and so are the names of what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmlip.integrations.host import HostModel, readable

Tensor = torch.Tensor
TAKES = "a model of MACE's, a MACE or ScaleShiftMACE, or a path to its file (.model)"
SMALLEST_VOLUME = 1e-3


@dataclass
class MaceModel(HostModel):
    """Fed with the fields of MACE's ``AtomicData``; of several heads, the first."""

    def run(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        pos, types = data["pos"].to(self.dtype), data["atom_types"].view(-1)
        frames = data["cell"].view(-1, 3, 3).shape[0]
        batch = data["batch"] if "batch" in data else torch.zeros_like(types)
        counts = batch.bincount(minlength=frames)
        cell = data["cell"].view(-1, 3, 3).to(pos)
        centre, neighbour = data["edge_index"]
        unit_shifts = -data["edge_cell_shift"].view(-1, 3).to(pos)
        out = self.model(
            {
                "positions": pos,
                "node_attrs": torch.nn.functional.one_hot(types, len(self.type_names)).to(pos),
                "edge_index": torch.stack([neighbour, centre]),
                "unit_shifts": unit_shifts,
                "shifts": torch.bmm(unit_shifts.unsqueeze(1), cell[batch[centre]]).squeeze(1),
                "cell": cell.view(-1, 3),
                "batch": batch,
                "ptr": torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
                "head": torch.zeros_like(counts),
            },
            training=self.model.training,
            compute_stress=True,
        )
        volume = torch.linalg.det(cell).abs().view(-1, 1, 1)
        # in float64, in which atomic energies leave digits for the rest
        of_atoms = out["node_energy"].double()
        return {
            "total_energy": of_atoms.new_zeros(frames).index_add(0, batch, of_atoms).view(-1, 1),
            "atomic_energy": of_atoms.view(-1, 1),
            "forces": out["forces"],
            "virial": out["virials"],
            "stress": torch.where(volume > SMALLEST_VOLUME, out["stress"], torch.nan),
        }

    def neighbours(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        from mace.data.neighborhood import get_neighborhood

        device = data["pos"].device
        pos, cell, pbc = (data[name].detach().cpu().numpy() for name in ("pos", "cell", "pbc"))
        periodic = tuple(bool(p) for p in pbc.reshape(3))
        edges, _, shifts, _ = get_neighborhood(pos, self.r_max, periodic, cell.reshape(3, 3).copy())
        index = torch.as_tensor(edges, dtype=torch.long, device=device).flip(0)
        moved = -torch.as_tensor(shifts, dtype=torch.float64, device=device)
        return {**data, "edge_index": index, "edge_cell_shift": moved.view(-1, 3)}


def describe(model: torch.nn.Module) -> HostModel | None:
    """A whole model of MACE's; None for anything else."""
    names = ("interactions", "products", "atomic_numbers", "r_max", "atomic_energies_fn")
    return host_model(model) if all(hasattr(model, name) for name in names) else None


def host_model(model: torch.nn.Module) -> HostModel:
    """A whole model in memory, with what it takes to feed it."""
    return _described(model, type(model).__name__, "memory")


def _described(model: Any, origin: str, kind: str) -> HostModel:
    from ase.data import chemical_symbols

    names = [chemical_symbols[number] for number in model.atomic_numbers.tolist()]
    dtype = next(p.dtype for p in model.parameters())
    about = getattr(model, "table_metadata", {})
    tolerance = float(about.get("fastmlip_table_tolerance", 0.0))
    harmonics = model.spherical_harmonics.irreps_out
    return MaceModel(
        model, origin, kind, dtype, names, float(model.r_max), table_tolerance=tolerance,
        has_inversion=all(ir.p == (-1) ** ir.l for _, ir in harmonics),
    )  # fmt: skip


def load(path: Path, dtype: str | None, device: str) -> HostModel | None:
    """The stock model of a file; None for a kind of file that is not MACE's.

    Raises:
        ValueError: the file cannot be read as what its name says.
    """
    if path.suffix != ".model":
        return None
    with readable(path, "model of MACE's"):
        model = torch.load(path, map_location=device, weights_only=False)
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{path}: expected a model of MACE's, got {type(model).__name__}")
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    return _described(model, str(path), "checkpoint")

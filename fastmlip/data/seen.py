"""The sums that the statistics of a data set are made from, batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from fastmlip.data.running import RunningLeastSquares, RunningMoments, sum_by

Tensor = torch.Tensor
TYPES, EDGES, ENERGY, FORCES = "atom_types", "edge_index", "total_energy", "forces"


class Seen:
    """What the batches so far held.

    Args:
        type_names: of the model; without any, all atoms count as one type.
        names: statistics that will be asked for; some need sums of their own.

    Attributes:
        num_frames: frames.
        atoms: atoms ``[T]``.
        neighbors: edges by type of their centre ``[T]``.
        pairs: edges by types of centre and neighbour ``[T, T]``.
        total_energy, per_atom_energy: moments over frames.
        squared_forces: means over the components of forces, by type.
        isolated: energies of frames of one atom without neighbours, by type.
        lstsq: rows n_ft with right-hand sides E_f.
        nan_counts: by field.
    """

    def __init__(self, type_names: Sequence[str], names: Collection[str]) -> None:
        types = max(1, len(type_names))
        self.type_names = type_names
        self.names = names
        self.num_frames = 0
        self.atoms = torch.zeros(types, dtype=torch.float64)
        self.neighbors = torch.zeros(types, dtype=torch.float64)
        self.pairs = torch.zeros(types, types, dtype=torch.float64)
        self.total_energy, self.per_atom_energy = RunningMoments(), RunningMoments()
        self.squared_forces = RunningMoments(types)
        self.isolated = RunningMoments(types)
        self.lstsq = RunningLeastSquares(types)
        self.nan_counts: dict[str, int] = {}

    def add(self, data: Mapping[str, Tensor], names: Collection[str]) -> None:
        """Add one batch, of which the fields ``names`` are needed."""
        fields = {name: self._field(data, name) for name in names}
        types, frame, num_atoms = self._atoms(data, fields)
        self.num_frames += len(num_atoms)
        self.atoms += sum_by(types, len(self.atoms))
        if FORCES in fields:
            self._add_forces(fields[FORCES], types)
        neighbors = None
        if EDGES in fields:
            neighbors = self._add_edges(fields[EDGES], types)
        if ENERGY in fields:
            self._add_energies(fields[ENERGY], types, frame, num_atoms, neighbors)

    def merge(self, other: Seen) -> None:
        """Add all that ``other`` has seen."""
        self.num_frames += other.num_frames
        for name in ("atoms", "neighbors", "pairs"):
            getattr(self, name).add_(getattr(other, name))
        for name in ("total_energy", "per_atom_energy", "squared_forces", "isolated", "lstsq"):
            getattr(self, name).merge(getattr(other, name))
        for field, count in other.nan_counts.items():
            self.nan_counts[field] = self.nan_counts.get(field, 0) + count

    @staticmethod
    def _field(data, name: str) -> Tensor:
        if name not in data:
            raise ValueError(f"a batch has no field {name!r}, but the first batch has it")
        return data[name].detach().cpu()

    def _atoms(self, data, fields) -> tuple[Tensor, Tensor, Tensor]:
        """Types ``[N]`` (zeros if not needed), frames ``[N]`` and atoms per frame ``[F]``."""
        if TYPES in fields:
            types = fields[TYPES].reshape(-1).long()
            low, high = (int(types.min()), int(types.max())) if len(types) else (0, 0)
            if low < 0 or high >= len(self.atoms):
                raise ValueError(
                    f"atom_types: found type {low if low < 0 else high}, expected 0 to "
                    f"{len(self.atoms) - 1} for type_names {self.type_names}"
                )
        else:
            types = torch.zeros(len(self._field(data, "pos")), dtype=torch.int64)
        if "num_atoms" not in data:
            return types, torch.zeros_like(types), torch.tensor([len(types)])
        num_atoms = self._field(data, "num_atoms").reshape(-1).long()
        if int(num_atoms.sum()) != len(types) or not bool((num_atoms > 0).all()):
            raise ValueError(
                f"num_atoms: expected positive numbers that sum to the {len(types)} atoms of the "
                f"batch, got {num_atoms.tolist()}"
            )
        starts = torch.zeros_like(types)
        starts[num_atoms.cumsum(0)[:-1]] = 1
        return types, starts.cumsum(0), num_atoms

    def _add_forces(self, forces: Tensor, types: Tensor) -> None:
        if forces.shape != (len(types), 3):
            raise ValueError(f"forces: expected [{len(types)}, 3], got {list(forces.shape)}")
        squares, size = forces.double().square(), len(self.atoms)
        sums = sum_by(types, size, squares.sum(1))
        count = 3 * sum_by(types, size)
        if bool(sums.isnan().any()):
            nan = squares.isnan()
            self.nan_counts[FORCES] = self.nan_counts.get(FORCES, 0) + int(nan.sum())
            sums = sum_by(types, size, squares.nan_to_num(0.0, torch.inf).sum(1))
            count = sum_by(types, size, (~nan).sum(1).double())
        zero = torch.zeros_like(sums)
        self.squared_forces.merge_parts(count, zero, sums / count.clamp(min=1), zero)

    def _add_edges(self, edge_index: Tensor, types: Tensor) -> Tensor:
        neighbors = sum_by(edge_index[0], len(types))
        if len(neighbors) != len(types):
            raise ValueError(
                f"edge_index: found atom {len(neighbors) - 1}, the batch has {len(types)}"
            )
        self.neighbors += sum_by(types, len(self.atoms), neighbors)
        if "per_type_pair_num_neighbors_mean" in self.names:
            center, neighbor = types[edge_index]
            size = len(self.atoms)
            self.pairs += sum_by(center * size + neighbor, size * size).view(size, size)
        return neighbors

    def _add_energies(self, energy, types, frame, num_atoms, neighbors) -> None:
        energy = energy.double().reshape(-1)
        if len(energy) != len(num_atoms):
            raise ValueError(
                f"total_energy: expected {len(num_atoms)} values, one a frame, got {len(energy)}"
            )
        known = ~energy.isnan()
        nan = len(energy) - int(known.sum())
        if nan:
            self.nan_counts[ENERGY] = self.nan_counts.get(ENERGY, 0) + nan
        self.total_energy.update(energy[known])
        self.per_atom_energy.update((energy / num_atoms)[known])
        if "per_type_energy_lstsq" in self.names:
            size = len(self.atoms)
            counts = sum_by(frame * size + types, len(energy) * size).view(-1, size)
            self.lstsq.update(counts[known], energy[known])
        if neighbors is not None and "isolated_atom_energies" in self.names:
            first = num_atoms.cumsum(0) - num_atoms
            alone = known & (num_atoms == 1) & (neighbors[first] == 0)
            if bool(alone.any()):
                self.isolated.update(energy[alone], types[first[alone]])

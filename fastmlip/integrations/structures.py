"""The structures a model is checked on, and what is done to them: turned, moved, reordered.

A frame is the dict of tensors that NequIP's models take; positions in Angstrom (the unit of
``r_max``), edges point from ``edge_index[1]`` to their centre ``edge_index[0]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

Tensor = torch.Tensor
Data = dict[str, Tensor]
POS, CELL, EDGES, SHIFTS, TYPES = "pos", "cell", "edge_index", "edge_cell_shift", "atom_types"
DISPLACEMENT = 0.05  # Angstrom, root mean square of a component
GIVEN_FRAMES = 3


class Frame(NamedTuple):
    """``given`` is as it came from the user; ``data`` has its atoms displaced at random."""

    name: str
    data: Data
    given: Data | None = None

    @property
    def versions(self) -> list[Data]:
        return [self.data] if self.given is None else [self.given, self.data]


def volume(data: Data) -> float:
    """Of the cell; 0 where there is none."""
    return float(torch.linalg.det(data[CELL].view(3, 3)).abs())


def of_atoms(atoms: Any, types: Sequence[int]) -> Data:
    """The fields of an ``ase.Atoms`` whose atoms are of the types of these numbers, without
    edges."""
    return {
        POS: torch.as_tensor(atoms.positions, dtype=torch.float64),
        CELL: torch.as_tensor(atoms.cell.array, dtype=torch.float64).view(1, 3, 3),
        "pbc": torch.as_tensor(atoms.pbc).view(1, 3),
        TYPES: torch.as_tensor(types, dtype=torch.long),
    }


def together(frames: Sequence[Data]) -> Data:
    """One batch of several frames."""
    counts = [len(frame[POS]) for frame in frames]
    starts = [sum(counts[:n]) for n in range(len(counts))]
    fields = {n: torch.cat([f[n] for f in frames]) for n in (POS, CELL, "pbc", TYPES, SHIFTS)}
    edges = [frame[EDGES] + n for frame, n in zip(frames, starts, strict=True)]
    device = fields[POS].device
    atoms = torch.tensor(counts, device=device)
    batch = torch.arange(len(frames), device=device).repeat_interleave(atoms)
    return {**fields, EDGES: torch.cat(edges, 1), "batch": batch, "num_atoms": atoms}


# ---------------------------------------------------------------- where they come from


def from_file(path: str | Path, host: Any, frames: int, seed: int) -> list[Frame]:
    """Frames of a file that ASE reads, evenly spaced in it.

    Raises:
        ValueError: no frames, or a species that the model has no type for.
    """
    from ase.io import read

    try:
        found: Any = read(str(path), index=":")
    except Exception as error:  # whatever a reader of ASE may raise
        raise ValueError(
            f"{path} cannot be read by ASE: {type(error).__name__}: {error}"
        ) from error
    if not found:
        raise ValueError(f"{path} holds no structures")
    chosen = np.unique(np.linspace(0, len(found) - 1, min(frames, len(found))).round().astype(int))
    names = [f"{Path(path).name}[{i}]" for i in chosen]
    return from_atoms([found[i] for i in chosen], host, seed, names)


def from_atoms(
    structures: Sequence[Any], host: Any, seed: int, names: Sequence[str] | None = None
) -> list[Frame]:
    """Frames of ``ase.Atoms``, whose chemical symbols are the model's type names."""
    if not structures:
        raise ValueError("structures: expected at least one, got none")
    random = np.random.default_rng(seed)
    frames = []
    for number, atoms in enumerate(structures):
        name = names[number] if names else f"structure {number}"
        if not len(atoms):
            raise ValueError(f"{name} has no atoms")
        unknown = sorted(set(atoms.get_chemical_symbols()) - set(host.type_names))
        if unknown:
            raise ValueError(
                f"{name} holds {', '.join(unknown)}; the model's types are "
                f"{', '.join(host.type_names)}"
            )
        types = [host.type_names.index(symbol) for symbol in atoms.get_chemical_symbols()]
        moved = atoms.copy()
        moved.positions += random.normal(size=moved.positions.shape) * DISPLACEMENT
        frames.append(Frame(name, host.frame(moved, types), host.frame(atoms, types)))
    return frames


def generated(host: Any, seed: int) -> list[Frame]:
    """A disordered crystal, a molecule-like cluster without a cell, two atoms in a cell so small
    that they see their own images, and one atom by itself."""
    from ase import Atoms

    random = np.random.default_rng(seed)
    distance = _bond_length(host)
    crystal = _crystal(random, distance, 2)
    cluster = Atoms("X6", _apart(random, 6, 0.85 * distance))
    edge = min(1.25 * distance, 0.8 * host.r_max)
    tiny = Atoms(
        "X2",
        [[0.1, 0.0, 0.2], [0.52 * edge, 0.45 * edge, 0.56 * edge]],
        cell=edge * (np.diag([1.0, 1.04, 1.1]) + 0.03 * random.normal(size=(3, 3))),
        pbc=True,
    )
    lone = Atoms("X", [[0.0, 0.0, 0.0]])
    return [
        Frame(name, host.frame(atoms, _types(host, len(atoms), random)))
        for name, atoms in {
            "disordered crystal": crystal,
            "cluster": cluster,
            "own images": tiny,
            "lone atom": lone,
        }.items()
    ]


def small(host: Any) -> Data:
    """Four atoms in a disordered crystal."""
    random = np.random.default_rng(0)
    atoms = _crystal(random, _bond_length(host), 1)
    return host.frame(atoms, _types(host, len(atoms), random))


def _crystal(random: Any, distance: float, cells: int) -> Any:
    from ase.build import bulk

    crystal = bulk("X", "fcc", a=2**0.5 * distance, cubic=True) * (cells, 1, 1)
    crystal.positions += 0.07 * distance * random.normal(size=(len(crystal), 3))
    shear = np.eye(3) + 0.04 * random.normal(size=(3, 3))
    crystal.set_cell(crystal.cell.array @ shear, scale_atoms=True)
    return crystal


def lone_atoms(host: Any) -> Data:
    """An atom of each type, none near another."""
    from ase import Atoms

    count = len(host.type_names)
    line = np.arange(count)[:, None] * [10.0 * host.r_max, 0.0, 0.0]
    return host.frame(Atoms(f"X{count}", line), range(count))


def _bond_length(host: Any) -> float:
    """Of a typical pair of the model's types, well within its cutoff."""
    from ase.data import atomic_numbers, covalent_radii

    known = [atomic_numbers[name] for name in host.type_names if name in atomic_numbers]
    radius = float(np.mean(covalent_radii[known])) if known else 0.25 * host.r_max
    return min(2.2 * radius, 0.7 * host.r_max)


def _types(host: Any, count: int, random: Any) -> list[int]:
    """Types in turn, from another one each time."""
    first = int(random.integers(len(host.type_names)))
    return [(first + i) % len(host.type_names) for i in range(count)]


def _apart(random: Any, count: int, distance: float) -> np.ndarray:
    """Random points, the next one at about ``distance`` from one before, and no two closer."""
    points = [np.zeros(3)]
    while len(points) < count:
        step = random.normal(size=3)
        start = points[int(random.integers(len(points)))]
        point = start + step / np.linalg.norm(step) * distance * random.uniform(1.0, 1.2)
        if min(np.linalg.norm(point - other) for other in points) >= distance:
            points.append(point)
    return np.array(points)


# ---------------------------------------------------------------- what is done to them


def displaced(data: Data, shift: Tensor, host: Any) -> Data:
    """Atoms moved by ``shift [N, 3]``, with a neighbour list of their own."""
    return host.neighbours({**data, POS: data[POS] + shift})


def strained(data: Data, strain: Tensor, host: Any) -> Data:
    """Positions and cell times ``1 + strain``, ``strain [3, 3]`` symmetric."""
    factor = torch.eye(3).to(strain) + strain
    return host.neighbours({**data, POS: data[POS] @ factor, CELL: data[CELL] @ factor})


def turned(data: Data, rotation: Tensor) -> Data:
    """Every vector ``v`` to ``rotation @ v``, with the same edges."""
    return {**data, POS: data[POS] @ rotation.T, CELL: data[CELL] @ rotation.T}


def moved(data: Data, random: torch.Generator, r_max: float) -> Data:
    """All atoms moved together, and each by a lattice vector of its own."""
    pos = data[POS]
    new = {**data, POS: pos + r_max * draw((3,), random).to(pos)}
    if volume(data):
        lattice = torch.randint(-2, 3, pos.shape, generator=random).to(pos)
        new[POS] = new[POS] + lattice @ data[CELL].view(3, 3)
        centre, neighbour = data[EDGES]
        new[SHIFTS] = data[SHIFTS] + lattice[centre] - lattice[neighbour]
    return new


def renumbered(data: Data, order: Tensor) -> Data:
    """Atom ``order[i]`` becomes atom ``i``; the edges keep their order."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    new = {key: data[key][order] for key in data if _is_of_atoms(key, data)}
    return {**data, **new, EDGES: place[data[EDGES]]}


def _is_of_atoms(key: str, data: Data) -> bool:
    return key in (POS, TYPES, "atomic_numbers")


def shuffled(data: Data, random: torch.Generator) -> Data:
    """The same edges in another order."""
    edges = data[EDGES]
    order = torch.randperm(edges.shape[1], generator=random).to(edges.device)
    return {**data, EDGES: edges[:, order], SHIFTS: data[SHIFTS][order]}


def thinned(data: Data, random: torch.Generator) -> Data:
    """Shuffled, and one edge in four left out, whatever its reverse: as between an atom and a
    ghost of another domain. In full lists, a swap of both ends of all edges can go unseen."""
    data = shuffled(data, random)
    keep = 3 * data[EDGES].shape[1] // 4
    return {**data, EDGES: data[EDGES][:, :keep], SHIFTS: data[SHIFTS][:keep]}


def draw(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Normal random numbers, float64."""
    return torch.randn(tuple(shape), generator=random, dtype=torch.float64)


def random_rotation(random: torch.Generator) -> Tensor:
    """Uniform among the proper rotations ``[3, 3]``."""
    q, r = torch.linalg.qr(draw((3, 3), random))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q).sign()

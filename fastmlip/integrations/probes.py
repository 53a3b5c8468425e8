"""Structures on which forces of a tabulated model are compared with those of its networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from fastmlip.integrations.host import HostModel

Frame = dict[str, Any]
SHORTEST = 0.1  # distance over r_max; a bond of hydrogen is 0.12 to 0.18 of 6 Angstrom
CLUSTERS = 1000  # dimers, and as many trimers, at most: 44 types have fewer pairs


def ordinary(
    host: HostModel, structures: Iterable[Any] | None, types: Sequence[int] | None = None
) -> Iterator[Frame]:
    """The user's structures, or disordered cells, of these types or of all."""
    if structures is None:
        count = len(host.type_names) if types is None else len(types)
        for frame in _disordered(host.r_max, count):
            yield _finished(host, frame, types)
        return
    is_empty = True
    for atoms in structures:
        is_empty = False
        yield _on_device(host, host.frame(atoms, types_of([atoms], host.type_names)[0]))
    if is_empty:
        raise ValueError("structures: expected at least one ase.Atoms, got none")


def short(host: HostModel, types: Sequence[int] | None = None) -> Iterator[Frame]:
    """Bonds from :data:`SHORTEST` on: molecules as dense as water, and dimers and trimers of all
    pairs of types, or of :data:`CLUSTERS` of them."""
    count = len(host.type_names) if types is None else len(types)
    generator = torch.Generator().manual_seed(1)
    for make in (_molecules, _clusters):
        yield _finished(host, make(host.r_max, count, generator), types)


def shortest(host: HostModel, frame: Frame) -> float:
    """The shortest distance in a frame over r_max."""
    centre, neighbour = frame["edge_index"]
    vectors = frame["pos"][neighbour] - frame["pos"][centre]
    if "edge_cell_shift" in frame:
        vectors = vectors + frame["edge_cell_shift"].to(vectors) @ frame["cell"].view(3, 3)
    return vectors.norm(dim=1).min().item() / host.r_max if len(vectors) else math.inf


def _finished(host: HostModel, frame: Frame, types: Sequence[int] | None) -> Frame:
    """With a neighbour list, and with ``types[t]`` in the place of type t."""
    from ase import Atoms

    pos, cell = frame["pos"].numpy(), frame["cell"].numpy()
    numbers = frame["atom_types"].tolist()
    numbers = numbers if types is None else [types[number] for number in numbers]
    atoms = Atoms(f"X{len(pos)}", pos, cell=cell, pbc=frame["pbc"].numpy())
    return _on_device(host, host.frame(atoms, numbers))


def _on_device(host: HostModel, frame: Frame) -> Frame:
    device = next(host.model.parameters()).device
    return {name: value.to(device) for name, value in frame.items()}


def types_of(structures: Iterable[Any], type_names: Sequence[str]) -> list[list[int]]:
    """Numbers of the types of the atoms of each ``ase.Atoms``."""
    found = []
    for number, atoms in enumerate(structures):
        symbols = atoms.get_chemical_symbols()
        if not symbols:
            raise ValueError(f"structures: frame {number} has no atoms")
        if unknown := sorted(set(symbols) - set(type_names)):
            raise ValueError(f"structures: {unknown} are not among the model's types {type_names}")
        found.append([type_names.index(symbol) for symbol in symbols])
    return found


def _disordered(r_max: float, num_types: int) -> Iterator[Frame]:
    """Simple cubic cells at three densities, more and more disordered, with all types, whose
    distances fill the range from r_max / 4 on."""
    generator = torch.Generator().manual_seed(0)
    for spacing, disorder in ((0.6, 0.05), (0.5, 0.1), (0.42, 0.15)):
        noise = disorder * torch.randn(27, 3, generator=generator, dtype=torch.float64)
        types = torch.randint(0, num_types, (27,), generator=generator)
        yield _frame((_cubic(27) + noise) * spacing * r_max, 3 * spacing * r_max, types)


def _molecules(r_max: float, num_types: int, generator: torch.Generator) -> Frame:
    """27 trimers on a simple cubic lattice, with bonds of the first tenth of r_max beyond
    :data:`SHORTEST`."""
    bonds = torch.linspace(SHORTEST, 1.8 * SHORTEST, 54, dtype=torch.float64)
    bonds = bonds[torch.randperm(54, generator=generator)].view(27, 2)
    trimers = _trimers(bonds, generator) + 0.5 * _cubic(27)[:, None]
    types = torch.randint(0, num_types, (81,), generator=generator)
    return _frame(trimers.view(-1, 3) * r_max, 1.5 * r_max, types)


def _clusters(r_max: float, num_types: int, generator: torch.Generator) -> Frame:
    """Dimers and trimers two r_max apart, with bonds up to 4 times :data:`SHORTEST`."""
    pairs = torch.tensor(list(itertools.combinations_with_replacement(range(num_types), 2)))
    pairs = pairs.repeat(-(-64 // len(pairs)), 1)  # enough distances where types are few
    pairs = pairs[torch.randperm(len(pairs), generator=generator)][:CLUSTERS]
    third = torch.randint(0, num_types, (len(pairs), 1), generator=generator)
    bonds = SHORTEST * 4 ** torch.linspace(0, 1, len(pairs), dtype=torch.float64)
    bonds = bonds[torch.stack([torch.randperm(len(pairs), generator=generator) for _ in "ab"], 1)]
    places = 2.0 * _cubic(2 * len(pairs))[:, None]
    trimers = _trimers(bonds, generator) + places[: len(pairs)]
    dimers = _trimers(bonds, generator)[:, :2] + places[len(pairs) :]
    positions = torch.cat([trimers.flatten(0, 1), dimers.flatten(0, 1)])
    types = torch.cat([torch.cat([pairs, third], 1).flatten(), pairs.flatten()])
    side = 2.0 * math.ceil((2 * len(pairs)) ** (1 / 3) - 1e-9)
    return _frame(positions * r_max, side * r_max, types)


def _trimers(bonds: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``[n, 3, 3]``: an atom and two at the distances ``bonds [n, 2]``, at least 60 degrees apart,
    so that these two are not nearer to each other."""
    directions = torch.randn(2, len(bonds), 3, generator=generator, dtype=torch.float64)
    first, other = torch.nn.functional.normalize(directions, dim=-1)
    across = torch.nn.functional.normalize(torch.linalg.cross(first, other), dim=-1)
    across = torch.linalg.cross(across, first)
    angle = torch.rand(len(bonds), 1, generator=generator, dtype=torch.float64)
    angle = (angle * 2 + 1) * math.pi / 3
    second = first * angle.cos() + across * angle.sin()
    zero = torch.zeros_like(first)
    return torch.stack([zero, first * bonds[:, :1], second * bonds[:, 1:]], 1)


def _cubic(number: int) -> torch.Tensor:
    """``[number, 3]``: the first sites of a simple cubic lattice in a cube."""
    side = math.ceil(number ** (1 / 3) - 1e-9)
    return torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * 3)[:number]


def _frame(positions: torch.Tensor, side: float, types: torch.Tensor) -> Frame:
    return {
        "pos": positions,
        "cell": torch.eye(3, dtype=torch.float64) * side,
        "pbc": torch.ones(3, dtype=torch.bool),
        "atom_types": types,
    }

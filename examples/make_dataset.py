"""Label Cu-Pd-Au frames with the published SevenNet-0 potential (run once; the result is in git).

Needs an environment with ``sevenn``, ``typer`` and ``rich``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import typer
from ase import Atoms, units
from ase.build import bulk, fcc100, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from rich.progress import Progress

# PBE-like fcc lattice constants; a random alloy is started at their mean (Vegard's law)
LATTICE = {"Cu": 3.63, "Pd": 3.94, "Au": 4.16}
TIMESTEP = 3.0 * units.fs
STEPS_BETWEEN_FRAMES = 8


@dataclass(frozen=True)
class Series:
    """Independent short MD runs of one kind of structure at one temperature."""

    kind: str
    temperature: float
    runs: int
    frames_per_run: int


PLAN = [
    *(Series("bulk", t, 4, 5) for t in (300, 600, 900, 1200)),
    *(Series("slab", t, 3, 4) for t in (300, 600, 900, 1200)),
    *(Series("liquid", t, 4, 6) for t in (1200, 1500)),
    Series("strained", 0, 24, 1),
]


def random_alloy(template: Atoms, lattice: float, rng: np.random.Generator) -> Atoms:
    """Put random species on ``template``'s sites and rescale it to the alloy's lattice constant."""
    atoms = template.copy()
    shares = rng.dirichlet([2.0, 2.0, 2.0])
    atoms.symbols = rng.choice(list(LATTICE), size=len(atoms), p=shares)
    target = np.mean([LATTICE[symbol] for symbol in atoms.symbols])
    atoms.set_cell(atoms.cell * target / lattice, scale_atoms=True)
    return atoms


def build(kind: str, rng: np.random.Generator) -> Atoms:
    if kind == "slab":
        # (111) and (100) facets
        face, size = (fcc111, (3, 3, 4)) if rng.random() < 0.5 else (fcc100, (3, 3, 4))
        slab = random_alloy(face("Cu", size, a=4.0, vacuum=6.0), 4.0, rng)
        slab.pbc = True
        return slab
    atoms = random_alloy(bulk("Cu", a=4.0, cubic=True).repeat(2), 4.0, rng)
    if kind == "liquid":
        atoms.set_cell(atoms.cell * 1.03, scale_atoms=True)
        atoms.positions += rng.normal(0.0, 0.35, atoms.positions.shape)
    elif kind == "strained":
        strain = rng.normal(0.0, 0.03, (3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0.0, rng.uniform(0.02, 0.12), atoms.positions.shape)
    else:
        atoms.set_cell(atoms.cell * rng.uniform(0.98, 1.04), scale_atoms=True)
    return atoms


def langevin(atoms: Atoms, temperature: float, steps: int, rng: np.random.Generator) -> None:
    friction = 0.02 / units.fs
    dyn = Langevin(
        atoms, TIMESTEP, temperature_K=temperature, friction=friction, fixcm=False, rng=rng
    )
    dyn.run(steps)


def sample(series: Series, calc, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield the frames of one run, each carrying energy, forces and stress."""
    atoms = build(series.kind, rng)
    atoms.calc = calc
    if series.temperature:
        # the start is a perfect lattice, half of the kinetic energy goes into it
        thermalize_momenta(atoms, temperature_K=2 * series.temperature, rng=rng)
        if series.kind == "liquid":
            langevin(atoms, 3000, 80, rng)
        langevin(atoms, series.temperature, 25, rng)
    for _ in range(series.frames_per_run):
        if series.temperature:
            langevin(atoms, series.temperature, STEPS_BETWEEN_FRAMES, rng)
        # periodic cells for all: a slab's vacuum is wide enough to make no difference
        frame = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        frame.info.update(config_type=series.kind, temperature=float(series.temperature))
        frame.calc = SinglePointCalculator(
            frame,
            energy=float(atoms.get_potential_energy()),
            forces=atoms.get_forces().copy(),
            stress=atoms.get_stress().copy(),
        )
        yield frame


def main(
    output: Path = Path(__file__).parent / "data" / "cupdau.extxyz",
    seed: int = 20240,
    threads: int = 1,
) -> None:
    """Write the frames to OUTPUT in a shuffled order."""
    from sevenn.calculator import SevenNetCalculator

    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    calc = SevenNetCalculator("7net-0", device="cpu")
    frames: list[Atoms] = []
    with Progress() as progress:
        task = progress.add_task("labelling", total=sum(s.runs * s.frames_per_run for s in PLAN))
        for series in PLAN:
            for _ in range(series.runs):
                for frame in sample(series, calc, rng):
                    frames.append(frame)
                    progress.update(task, advance=1, description=series.kind)
    # shuffled here, so that any split of the file holds all kinds
    write(output, [frames[i] for i in rng.permutation(len(frames))], format="extxyz")
    forces = np.concatenate([frame.get_forces() for frame in frames])
    print(f"{len(frames)} frames, {len(forces)} atoms, force rms {forces.std():.3f} eV/A")


if __name__ == "__main__":
    typer.run(main)

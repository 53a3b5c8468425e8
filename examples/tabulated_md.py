"""Load a trained NequIP model, tabulate it, and run molecular dynamics in ASE.

    python examples/tabulated_md.py model.ckpt structure.xyz --steps 1000

MODEL is a checkpoint (.ckpt) or a package (.nequip.zip). It runs as it is loaded, without
compiling; `fastmlip tabulate model.ckpt -o model.nequip.pt2` compiles one that runs faster still.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import ase.io
import torch
import typer
from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.model import ModelFromCheckpoint, ModelFromPackage
from nequip.utils.global_state import set_global_state
from rich.console import Console
from rich.progress import track

import fastmlip


def load(file: Path) -> torch.nn.Module:
    set_global_state(allow_tf32=False)
    if file.suffix == ".ckpt":
        model = ModelFromCheckpoint(str(file))
    else:
        model = ModelFromPackage(str(file))
    return model["sole_model"] if isinstance(model, torch.nn.ModuleDict) else model


def calculator(model, r_max: float, type_names: list[str]) -> NequIPCalculator:
    types = ChemicalSpeciesToAtomTypeMapper(
        type_names, chemical_species_to_atom_type_map={name: name for name in type_names}
    )
    return NequIPCalculator(model, "cpu", transforms=[types, NeighborListTransform(r_max=r_max)])


def main(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL")],
    structure: Annotated[Path, typer.Argument(help="Any file that ASE reads.")],
    steps: int = 1000,
    timestep_fs: float = 1.0,
    temperature_k: float = 300.0,
    tol: Annotated[float, typer.Option(help="Error of forces, eV/Angstrom.")] = 1e-5,
    trajectory: Annotated[Path, typer.Option(help="Where frames go, every 100 steps.")] = Path(
        "md.traj"
    ),
) -> None:
    console = Console()
    with console.status("loading and tabulating"):
        model = fastmlip.tabulate(load(model_file).eval(), tol)
    about = model.metadata
    console.print(
        f"tabulated: {about['fastmlip_table_intervals']} intervals, max |dF| "
        f"{about['fastmlip_table_max_force_error']} eV/Angstrom"
    )
    atoms = ase.io.read(structure)
    atoms.calc = calculator(model, float(about["r_max"]), about["type_names"].split(" "))
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature_k)
    md = Langevin(
        atoms, timestep_fs * units.fs, temperature_K=temperature_k, friction=0.01 / units.fs,
        trajectory=str(trajectory), loginterval=100,
    )  # fmt: skip
    md.run(3)  # warm up
    start = time.perf_counter()
    for _ in track(range(steps), description=f"{len(atoms)} atoms"):
        md.run(1)
    seconds = (time.perf_counter() - start) / steps
    console.print(
        f"{seconds * 1e6 / len(atoms):.0f} us/atom/step, "
        f"{timestep_fs * 1e-6 * 86400 / seconds:.2f} ns/day; "
        f"T = {atoms.get_temperature():.0f} K, E = {atoms.get_total_energy():.4f} eV"
    )


if __name__ == "__main__":
    typer.run(main)

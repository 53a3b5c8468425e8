"""A trained model in LAMMPS on one and on two ranks, beside the same model by itself.

    make demo-lammps        # or: python examples/lammps/demo.py [model.ckpt]

Without a model it trains the demo's config first. It exports the model twice, exact and tabulated,
compiles the plug-in for the packages lammps and mpich, melts an alloy (in.melt), and compares
energies, forces and pressure of the last step with those that the model gives in Python.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from ase import Atoms
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
SPECIES = ["Cu", "Pd", "Au"]
RUNS = ((1, 1), (1, 2), (2, 1))  # ranks, threads of each
BAR = 1.6021765e6  # in an eV/Angstrom^3, as LAMMPS has it
LIMITS = {"energy": 1e-6, "forces": 1e-4, "pressure": 10.0}  # eV/atom, eV/A, bar: float32 sums
console = Console()


class Run(NamedTuple):
    """Of the last step; energies and forces by atom."""

    ms_per_step: float
    drift: float  # of the total energy, eV/atom
    pressure: float  # of the potential alone, bar
    dump: np.ndarray
    edge: float  # of the box


def call(command: list, log: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=log.parent,
        env={**os.environ, **environment},
    )  # fmt: skip
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-10:])
        console.print(f"[bold red]FAILED[/] {command[0]}, see {log}\n{tail}", highlight=False)
        raise typer.Exit(1)
    return done.stdout


def train(out: Path) -> Path:
    checkpoint = out / "train" / "last.ckpt"
    if not checkpoint.exists():
        with console.status("training the demo's NequIP config"):
            command = [BIN / "nequip-train", "-cp", HERE.parent, "-cn", "nequip_fastmlip"]
            command += [f"hydra.run.dir={out / 'train'}"]
            data = HERE.parent / "data" / "cupdau.extxyz"
            call([*command, f"data.split_dataset.file_path={data}"], out / "train.log")
    return checkpoint


def melt(model: Path, plugin: Path, out: Path, ranks: int, threads: int, sizes: list[str]) -> Run:
    name = f"{model.name.split('.')[0]}_{ranks}x{threads}"
    dump = out / f"{name}.dump"
    command = [BIN / "mpirun", "-n", ranks, BIN / "lmp", "-in", HERE / "in.melt", "-log", "none"]
    values = {"plugin": plugin, "model": model, "out": dump}
    command += [word for key, value in values.items() for word in ("-var", key, value)]
    text = call(
        [*command, *sizes],
        out / f"{name}.log",
        OMP_NUM_THREADS=str(threads),
        OMP_WAIT_POLICY="passive",
    )
    seconds, steps = re.search(r"Loop time of (\S+) on .* for (\d+) steps", text).groups()
    rows = [row.split() for row in text.splitlines()]
    begin = next(i for i, row in enumerate(rows) if row[:2] == ["Step", "Temp"])
    end = next(i for i, row in enumerate(rows) if row[:1] == ["Loop"])
    thermo = np.array([[float(x) for x in r] for r in rows[begin + 1 : end] if r[0].isdigit()])
    table = np.loadtxt(dump, skiprows=9)
    edge = float(dump.read_text().splitlines()[5].split()[1])
    drift = abs(thermo[-1, 3] - thermo[0, 3]) / len(table)
    return Run(1e3 * float(seconds) / float(steps), drift, thermo[-1, 5], table, edge)


def by_itself(host, run: Run) -> tuple[np.ndarray, np.ndarray, float]:
    """Energies and forces of atoms, and the pressure of the potential alone, in bar."""
    types = run.dump[:, 1].astype(int) - 1
    atoms = Atoms([SPECIES[t] for t in types], run.dump[:, 2:5], cell=[run.edge] * 3, pbc=True)
    out = host.run(host.frame(atoms, [host.type_names.index(SPECIES[t]) for t in types]))
    pressure = -float(out["stress"].view(3, 3).trace()) / 3 * BAR
    return out["atomic_energy"].detach().numpy().ravel(), out["forces"].detach().numpy(), pressure


def main(
    model: Annotated[Path | None, typer.Argument(help="Of types Cu, Pd and Au.")] = None,
    out: Path = Path("demo_output/lammps"),
    cells: Annotated[int, typer.Option(help="Of four atoms, along each axis.")] = 5,
    steps: int = 200,
) -> None:
    """Run one model in LAMMPS on several ranks and compare."""
    import fastmlip
    from fastmlip.integrations import hosts

    torch.set_num_threads(2)
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = train(out) if model is None else model.resolve()
    with console.status("compiling the plug-in"):
        line = call([BIN / "fastmlip", "lammps-plugin"], out / "plugin.log")
    plugin = Path(line.split()[-1])
    sizes = ["-var", "cells", cells, "-var", "steps", steps]
    table = Table("", title=f"{4 * cells**3} atoms, {steps} steps of NVE; ranks x threads")
    for title in ("ms/step", "pe (eV/atom)", "max |F| (eV/A)", "drift (meV/atom)",
                  "max |dE| (eV)", "max |dF| (eV/A)", "|dp| (bar)"):  # fmt: skip
        table.add_column(title, justify="right")
    wrong = []
    for form, options in {"exact": [], "tabulated": ["--tabulate"]}.items():
        file = out / f"{form}.lammps.pt2"
        with console.status(f"exporting, {form}"):
            command = [BIN / "fastmlip", "lammps-export", checkpoint, "-o", file, *options]
            call(command, out / f"export_{form}.log")
        stock = hosts.load(checkpoint).model
        fast = fastmlip.tabulate(stock) if options else fastmlip.accelerate(stock)
        host = hosts.describe(fast)
        for ranks, threads in RUNS:
            with console.status(f"{form}, {ranks} ranks, {threads} threads"):
                run = melt(file, plugin, out, ranks, threads, sizes)
            energy, forces, pressure = by_itself(host, run)
            errors = {
                "energy": np.abs(run.dump[:, 8] - energy).max(),
                "forces": np.abs(run.dump[:, 5:8] - forces).max(),
                "pressure": abs(run.pressure - pressure),
            }
            wrong += [f"{form} {k}" for k, value in errors.items() if value > LIMITS[k]]
            table.add_row(
                f"{form}, {ranks} x {threads}", f"{run.ms_per_step:.1f}",
                f"{run.dump[:, 8].mean():.6f}", f"{np.abs(run.dump[:, 5:8]).max():.4f}",
                f"{1e3 * run.drift:.3f}", f"{errors['energy']:.1e}", f"{errors['forces']:.1e}",
                f"{errors['pressure']:.1e}",
            )  # fmt: skip
    console.print(table)
    if wrong:
        console.print(f"[bold red]FAILED[/] too far off: {', '.join(wrong)}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

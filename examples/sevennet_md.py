"""Molecular dynamics of a crystal with SevenNet-0, stock and accelerated, and a comparison.

The weights come with SevenNet. Every form starts from the same positions and velocities.
"""

import json
import platform
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.spacegroup import crystal
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

STEP = 2.0  # fs
FORMS = {"stock": "#9aa5b8", "exact": "#c2410c", "tabulated": "#4c72b0"}  # with colours
# What the comparison must stay within; the second is the drift of the total energy beyond stock's
LIMITS = {"max |dF| (eV/Å)": 1e-4, "NVE |drift| beyond stock's (meV/atom/ps)": 0.1}
console = Console()


class Trajectory(NamedTuple):
    ms_per_step: float
    time_ps: np.ndarray
    energy: np.ndarray  # total energy per atom (eV)
    frames: list[Atoms]


def strontium_titanate(temperature: float, seed: int = 0) -> Atoms:
    """20 atoms of SrTiO3, with velocities."""
    atoms = crystal(
        ["Sr", "Ti", "O"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221,
        cellpar=[3.94, 3.94, 3.94, 90, 90, 90], size=(2, 2, 1),
    )  # fmt: skip
    # twice the temperature, as half of it goes into the perfect lattice
    random = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=random)
    Stationary(atoms)
    return atoms


def calculators(name: str) -> dict:
    from sevenn.calculator import SevenNetCalculator

    import fastmlip

    stock = SevenNetCalculator(name, device="cpu")
    exact = SevenNetCalculator(name, device="cpu")
    fastmlip.accelerate(exact.model)
    tabulated = SevenNetCalculator(fastmlip.tabulate(stock.model), device="cpu")
    return {"stock": stock, "exact": exact, "tabulated": tabulated}


def nve(calc, start: Atoms, steps: int, progress: Progress, label: str) -> Trajectory:
    """Velocity Verlet; the median step time includes ASE and the neighbour list."""
    task = progress.add_task(f"MD, {label}", total=steps)
    atoms = start.copy()
    atoms.calc = calc
    atoms.get_forces()
    rows: list[tuple[float, float]] = []
    frames: list[Atoms] = []

    def record() -> None:
        rows.append((time.perf_counter(), atoms.get_total_energy() / len(atoms)))
        if len(rows) % max(1, steps // 10) == 0:
            frames.append(atoms.copy())
        progress.update(task, completed=len(rows) - 1)

    dynamics = VelocityVerlet(atoms, STEP * units.fs)
    dynamics.attach(record)
    dynamics.run(steps)
    clock, energy = np.array(rows).T
    cost = 1e3 * float(np.median(np.diff(clock)))
    return Trajectory(cost, 1e-3 * STEP * np.arange(steps + 1), energy, frames)


def force_error(calcs: dict, form: str, frames: list[Atoms]) -> float:
    """The largest difference from stock of a force component, on frames of stock's trajectory."""
    pairs = [(calcs["stock"].get_forces(f), calcs[form].get_forces(f)) for f in frames]
    return float(max(abs(a - b).max() for a, b in pairs))


def drift(run: Trajectory) -> float:
    return float(abs(1e3 * np.polyfit(run.time_ps, run.energy, 1)[0]))


def table(runs: dict[str, Trajectory], errors: dict[str, float], threads: int) -> Table:
    rows = Table("", title=f"SevenNet-0, SrTiO3, 20 atoms, {threads} CPU threads")
    for heading in ("ms/step", "stock / this", *LIMITS):
        rows.add_column(heading, justify="right")
    for form, run in runs.items():
        ratio = runs["stock"].ms_per_step / run.ms_per_step
        error = f"{errors[form]:.1e}" if form in errors else ""
        beyond = f"{drift(run) - drift(runs['stock']):.1e}" if form in errors else ""
        rows.add_row(form, f"{run.ms_per_step:.3g}", f"{ratio:.3g}", error, beyond)
    return rows


def plot(runs: dict[str, Trajectory], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    widths = dict(zip(FORMS, (5, 2.5, 1), strict=True))
    for form, run in runs.items():
        excess = 1e3 * (run.energy - run.energy[0])
        left.plot(run.time_ps, excess, color=FORMS[form], lw=widths[form], label=form)
    left.set(title="NVE", xlabel="time (ps)", ylabel="total energy, change (meV/atom)")
    left.legend(frameon=False)
    bars = right.bar(list(runs), [run.ms_per_step for run in runs.values()], color=FORMS.values())
    right.bar_label(bars, [f"{run.ms_per_step:.3g}" for run in runs.values()])
    right.set(title="Cost", ylabel="ms per step")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main(
    model: str = "7net-0",
    out: Path = Path("demo_output/sevennet"),
    threads: int = 2,
    steps: int = 1000,
    temperature: float = 300.0,
) -> None:
    """Compare stock SevenNet and fastmlip in molecular dynamics: 2 ps each."""
    import torch

    begin = time.perf_counter()
    warnings.filterwarnings("ignore")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    with console.status("building and tabulating the model"):
        calcs = calculators(model)
    start = strontium_titanate(temperature)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar:
        runs = {form: nve(calcs[form], start, steps, bar, form) for form in FORMS}
    frames = runs["stock"].frames
    errors = {form: force_error(calcs, form, frames) for form in ("exact", "tabulated")}
    console.print(table(runs, errors, threads))
    plot(runs, out / "demo.png")
    worst = (max(errors.values()), max(drift(runs[form]) - drift(runs["stock"]) for form in errors))
    measured = dict(zip(LIMITS, worst, strict=True))
    summary = {
        "ms per step": {form: run.ms_per_step for form, run in runs.items()},
        "agreement": {name: {"measured": measured[name], "limit": LIMITS[name]} for name in LIMITS},
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - begin,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2))
    console.print(f"{summary['seconds']:.0f} s in all; see {out}/demo.png and summary.json")
    # `not <=` so that NaN fails too
    if wrong := [name for name, value in measured.items() if not value <= LIMITS[name]]:
        console.print(f"[bold red]FAILED[/] outside the stated limit: {'; '.join(wrong)}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

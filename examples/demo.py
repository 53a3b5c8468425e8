"""Train, export and run one NequIP or Allegro config with and without fastmlip, and compare them.

Both variants get the same seed, data and number of threads. The accuracy rows and the MD use
one checkpoint (the stock one), loaded with and without the accelerated operators.
"""

import csv
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import typer
from ase import Atoms, units
from ase.build import bulk
from ase.io import read
from ase.md.verlet import VelocityVerlet
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
VARIANTS = {"stock": "", "fastmlip": "_fastmlip"}  # name: what a config's name ends with
EXPORT_FLAGS = {"stock": [], "fastmlip": ["--modifiers", "enable_FastMLIP"]}

# What the comparison must stay within. Energies and forces are float32 sums in another order; in
# training that rounding is amplified step by step.
LIMITS = {
    "max |dE| per atom (eV)": 1e-6,
    "max |dF| (eV/A)": 1e-4,
    "validation curves, max relative difference": 1e-3,
    "NVE |drift| (meV/atom/ps)": 0.1,
}
console = Console()


class Training(NamedTuple):
    seconds_per_epoch: float
    peak_mib: float
    steps: np.ndarray  # training force MAE of every step (eV/A)
    epochs: np.ndarray  # validation force MAE after every epoch (eV/A)


class Trajectory(NamedTuple):
    us_per_atom_step: float
    time_ps: np.ndarray
    energy: np.ndarray  # total energy per atom (eV)
    temperature: np.ndarray


def fail(message: str) -> None:
    console.print(f"[bold red]FAILED[/] {message}")
    raise typer.Exit(1)


def column(metrics: Path, name: str) -> np.ndarray:
    """The non-empty entries of one column of Lightning's ``metrics.csv``."""
    if not metrics.exists():
        return np.array([])
    with metrics.open(newline="") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file) if row.get(name)])


def peak_rss_mib(pid: int) -> float:
    """High-water mark of one process; children (compilers, for instance) are not counted."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in status.splitlines() if "VmHWM" in x), 0.0)


def train(model: str, name: str, out: Path, threads: int, progress: Progress) -> Training:
    """Run ``nequip-train`` in a process of its own and follow its ``metrics.csv``."""
    config = OmegaConf.load(HERE / f"{model}.yaml")
    data = config.data
    steps = config.trainer.max_epochs * (
        data.split_dataset.train // data.train_dataloader.batch_size
    )
    task = progress.add_task(f"training, {name}", total=steps)
    metrics, log = out / name / "metrics.csv", out / f"train_{name}.log"
    metrics.unlink(missing_ok=True)
    command = [BIN / "nequip-train", "-cp", HERE, "-cn", model + VARIANTS[name]]
    process = start([*command, f"hydra.run.dir={out / name}"], log, threads)
    ends: list[float] = []
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, peak_rss_mib(process.pid))
        if len(column(metrics, "val0_epoch/forces_mae")) > len(ends):
            ends.append(time.perf_counter())
        progress.update(task, completed=len(column(metrics, "train_metric_step/forces_mae")))
        time.sleep(0.2)
    finish(process, log)
    return Training(
        # the first epoch holds warm-up and just-in-time compilation
        float(np.median(np.diff(ends))),
        peak,
        column(metrics, "train_metric_step/forces_mae"),
        column(metrics, "val0_epoch/forces_mae"),
    )


def start(command: list, log: Path, threads: int) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        return subprocess.Popen(
            [str(part) for part in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=HERE.parent,
            env=env,
        )


def finish(process: subprocess.Popen, log: Path) -> None:
    if process.wait() != 0:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        fail(f"{process.args[0]} stopped with an error, see {log}\n{tail}")


def export(checkpoint: Path, out: Path, progress: Progress) -> dict[str, Path]:
    """``nequip-compile`` both variants, side by side because this step is not timed."""
    task = progress.add_task("exporting both (aotinductor)", total=len(VARIANTS))
    files = {name: out / f"{name}.nequip.pt2" for name in VARIANTS}
    jobs = []
    for name, file in files.items():
        flags = ["--mode", "aotinductor", "--device", "cpu", "--target", "ase", *EXPORT_FLAGS[name]]
        log = out / f"compile_{name}.log"
        jobs.append((start([BIN / "nequip-compile", checkpoint, file, *flags], log, 1), log))
    for process, log in jobs:
        finish(process, log)
        progress.advance(task)
    return files


def calculators(checkpoint: Path, files: dict[str, Path]) -> dict[str, dict]:
    """ASE calculators of one checkpoint: {"eager" or "exported": {variant: calculator}}."""
    from nequip.integrations.ase import NequIPCalculator

    import fastmlip

    options = {"device": "cpu", "chemical_species_to_atom_type_map": True}
    eager = {name: NequIPCalculator._from_saved_model(checkpoint, **options) for name in VARIANTS}
    eager["fastmlip"].model = fastmlip.accelerate(eager["fastmlip"].model)
    exported = {n: NequIPCalculator.from_compiled_model(f, **options) for n, f in files.items()}
    return {"eager": eager, "exported": exported}


def differences(pair: dict, frames: list[Atoms]) -> tuple[float, float]:
    """Largest differences in energy per atom and in any force component."""
    energy, force = [], []
    for frame in frames:
        results = [(c.get_potential_energy(frame), c.get_forces(frame)) for c in pair.values()]
        energy.append(abs(results[0][0] - results[1][0]) / len(frame))
        force.append(np.abs(results[0][1] - results[1][1]).max())
    return float(max(energy)), float(max(force))


def md_cell(frames: list[Atoms], temperature: float, seed: int = 0) -> Atoms:
    """108 atoms with the composition and the volume per atom of one bulk frame of the data."""
    frame = next(f for f in frames if f.info["config_type"] == "bulk")
    rng = np.random.default_rng(seed)
    lattice = (4 * frame.get_volume() / len(frame)) ** (1 / 3)
    atoms = bulk("Cu", a=lattice, cubic=True).repeat(3)
    atoms.symbols = rng.choice(frame.symbols, size=len(atoms))
    # twice the temperature, as half of it goes into the perfect lattice
    speed = np.sqrt(2 * units.kB * temperature / atoms.get_masses())[:, None]
    velocities = speed * rng.normal(size=(len(atoms), 3))
    momenta = atoms.get_masses()[:, None] * velocities
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    return atoms


def nve(calc, start_from: Atoms, steps: int, progress: Progress, label: str) -> Trajectory:
    """Velocity Verlet, 2 fs steps; the median step time includes ASE and the neighbour list."""
    task = progress.add_task(label, total=steps)
    atoms = start_from.copy()
    for _ in range(3):  # warm-up; a small shift makes ASE compute again
        atoms.rattle(1e-6)
        calc.get_forces(atoms)
    atoms.positions = start_from.positions
    atoms.calc = calc
    dyn = VelocityVerlet(atoms, 2.0 * units.fs)
    rows: list[tuple[float, float, float]] = []

    def record() -> None:
        energy = atoms.get_total_energy() / len(atoms)
        rows.append((time.perf_counter(), energy, atoms.get_temperature()))
        progress.update(task, completed=len(rows) - 1)

    dyn.attach(record)
    dyn.run(steps)
    clock, energy, temperature = np.array(rows).T
    cost = 1e6 * np.median(np.diff(clock)) / len(atoms)
    return Trajectory(float(cost), 0.002 * np.arange(steps + 1), energy, temperature)


def agreement(runs: dict, trajectory: Trajectory, pairs: dict) -> dict[str, float]:
    """The measured counterpart of every entry of ``LIMITS``."""
    energy, force = np.max(list(pairs.values()), axis=0)
    curves = np.abs(runs["fastmlip"].epochs / runs["stock"].epochs - 1).max()
    drift = 1e3 * np.polyfit(trajectory.time_ps, trajectory.energy, 1)[0]
    values = (energy, force, curves, abs(drift))
    return {label: float(value) for label, value in zip(LIMITS, values, strict=True)}


def tables(cost: dict, measured: dict, threads: int) -> tuple[Table, Table]:
    costs = Table("", title=f"Cost, {threads} CPU threads")
    checks = Table("", title="Agreement")
    for title in ("stock", "fastmlip", "stock / fastmlip"):
        costs.add_column(title, justify="right")
    for title in ("measured", "limit"):
        checks.add_column(title, justify="right")
    for label, row in cost.items():
        numbers = (f"{value:.4g}" for value in row.values())
        costs.add_row(label, *numbers, f"{row['stock'] / row['fastmlip']:.2f}")
    for label, value in measured.items():
        checks.add_row(label, f"{value:.2g}", f"{LIMITS[label]:g}")
    return costs, checks


def plot(runs: dict, md: dict, cost: dict[str, dict[str, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = {"stock": "#9aa5b8", "fastmlip": "#c2410c"}
    lines = {"stock": {"lw": 4.5, "alpha": 0.7}, "fastmlip": {"lw": 1.2}}
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for name, run in runs.items():
        steps = np.arange(1, len(run.steps) + 1)
        left.plot(steps, run.steps, color=colors[name], label=name, **lines[name])
        ends = steps[-1] // len(run.epochs) * np.arange(1, len(run.epochs) + 1)
        size = 11 if name == "stock" else 5
        left.plot(ends, run.epochs, "o", ms=size, color=colors[name], mec="k", mew=0.6, zorder=3)
    left.plot([], [], "o", color="w", mec="k", label="validation, after each epoch")
    left.set(title="Training", xlabel="step", ylabel="force MAE (eV/Å)", yscale="log")
    left.legend(frameon=False)

    for name, run in md.items():
        excess = 1e3 * (run.energy - run.energy[0])
        middle.plot(run.time_ps, excess, color=colors[name], label=name, **lines[name])
    settled = md["fastmlip"].temperature[len(md["fastmlip"].temperature) // 4 :].mean()
    middle.set(title=f"NVE, 108 atoms at {settled:.0f} K", xlabel="time (ps)")
    middle.set_ylabel("total energy, change from start (meV/atom)")
    middle.legend(frameon=False)

    y = np.arange(len(cost))[::-1]
    for offset, name in ((0.19, "stock"), (-0.19, "fastmlip")):
        share = [row[name] / row["stock"] for row in cost.values()]
        bars = right.barh(y + offset, share, 0.36, color=colors[name], label=name)
        labels = [f"{row[name]:,.{int(row[name] < 100)}f}" for row in cost.values()]
        right.bar_label(bars, labels, padding=3)
    right.set(title="Cost relative to stock", yticks=y, yticklabels=cost)
    right.margins(x=0.18)
    right.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    for ax in (left, middle, right):
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(file, dpi=150)


class Model(str, Enum):
    """The config, in this folder."""

    nequip = "nequip"
    allegro = "allegro"


def main(
    model: Model = Model.nequip,
    out: Path = Path("demo_output"),
    threads: int = 2,
    md_steps: int = 1000,
    stock_md_steps: int = 100,
    temperature: float = 600.0,
) -> None:
    """Compare stock NequIP or Allegro and fastmlip on training, export and MD."""
    import torch

    begin = time.perf_counter()
    warnings.filterwarnings("ignore")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    frames = read(HERE / "data" / "cupdau.extxyz", ":")
    atoms = md_cell(frames, temperature)
    md: dict[str, dict[str, Trajectory]] = {"eager": {}, "exported": {}}
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar:
        runs = {name: train(model.value, name, out, threads, bar) for name in VARIANTS}
        checkpoint = out / "stock" / "last.ckpt"
        calcs = calculators(checkpoint, export(checkpoint, out, bar))
        pairs = {mode: differences(pair, frames[::10]) for mode, pair in calcs.items()}
        for mode, pair in calcs.items():
            for name, calc in pair.items():
                long = mode == "exported" and name == "fastmlip"
                steps = md_steps if long else stock_md_steps
                md[mode][name] = nve(calc, atoms, steps, bar, f"MD, {name} {mode}")

    cost = {
        "training (s/epoch)": {n: r.seconds_per_epoch for n, r in runs.items()},
        "training peak memory (MiB)": {n: r.peak_mib for n, r in runs.items()},
        "MD exported (µs/atom/step)": {n: t.us_per_atom_step for n, t in md["exported"].items()},
        "MD eager (µs/atom/step)": {n: t.us_per_atom_step for n, t in md["eager"].items()},
    }
    measured = agreement(runs, md["exported"]["fastmlip"], pairs)
    console.print(*tables(cost, measured, threads))
    plot(runs, md["exported"], cost, out / "demo.png")
    summary = {
        "cost": cost,
        "agreement": {k: {"measured": v, "limit": LIMITS[k]} for k, v in measured.items()},
        "validation force MAE (eV/A)": {n: r.epochs.tolist() for n, r in runs.items()},
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "seconds": time.perf_counter() - begin,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2))
    console.print(f"{summary['seconds']:.0f} s in all; see {out}/demo.png and summary.json")
    # `not <=` so that NaN fails too
    if wrong := [label for label, value in measured.items() if not value <= LIMITS[label]]:
        fail("outside the stated limit: " + "; ".join(wrong))


if __name__ == "__main__":
    typer.run(main)

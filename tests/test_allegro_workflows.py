"""Commands of NequIP and fastmlip on a trained Allegro model: checkpoints, packages, compiled
models, with the modifier and without, each loaded in the place of the other."""

import json
import re
import zipfile

import numpy as np
import pytest
import torch
from ase.build import bulk
from nequip.model import ModelFromCheckpoint, modify
from nequip.model.modify_utils import get_all_modifiers
from nequip_cases import relative_error
from test_nequip_workflows import (
    CONFIG,
    FRESH,
    MODIFIER,
    calculator_of,
    from_package,
    properties,
    run,
    train,
    weights,
)

import fastmlip

pytest.importorskip("allegro")

pytestmark = pytest.mark.usefixtures("nequip_state")

ALLEGRO = """allegro.model.AllegroModel
      compile_mode: {compile_mode}
      seed: 1
      model_dtype: float64
      type_names: [Cu]
      r_max: 4.0
      radial_chemical_embed:
        _target_: allegro.nn.TwoBodyBesselScalarEmbed
        num_bessels: 4
      l_max: 2
      parity: true
      num_layers: 2
      num_scalar_features: 8
      num_tensor_features: 4
      scalar_embed_mlp_hidden_layers_width: 8
      allegro_mlp_hidden_layers_width: 8
      readout_mlp_hidden_layers_width: 8
"""
TEMPLATE, count = re.subn(
    r"nequip\.model\.NequIPGNNModel\n.*?radial_mlp_width: 8\n", ALLEGRO, CONFIG, flags=re.DOTALL
)
assert count == 1
COMPILE = ["--mode", "aotinductor", "--device", "cpu", "--target", "ase"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Trained with the modifier in its YAML file, and without."""
    return {
        name: train(tmp_path_factory.mktemp(name), name == "fast", template=TEMPLATE)
        for name in ("fast", "stock")
    }


@pytest.fixture(scope="module")
def packages(checkpoints):
    found = {}
    for name, path in checkpoints.items():
        found[name] = path.parent / "model.nequip.zip"
        run(["nequip-package", "build", path, found[name]], path.parent)
    return found


@pytest.fixture(scope="module")
def atoms():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=5)
    return atoms


def is_fast(model):
    kinds = {type(m).__name__ for m in model.modules()}
    assert ("FastAllegro" in kinds) is ("Allegro_Module" not in kinds)
    return "FastAllegro" in kinds


def loaded(path):
    return ModelFromCheckpoint(str(path))["sole_model"]


def assert_same_predictions(model, reference, atoms):
    want, got = (properties(calculator_of(m), atoms) for m in (reference, model))
    assert want[1].abs().max() > 1e-3
    for expected, value in zip(want, got, strict=True):
        assert relative_error(value, expected) < 1e-10


def resumed(checkpoint, folder):
    """A second epoch."""
    config = (checkpoint.parent / "conf.yaml").read_text()
    config = config.replace("max_epochs: 1", "max_epochs: 2")
    (folder / "conf.yaml").write_text(f"{config}\nckpt_path: {checkpoint}\n")
    run(["nequip-train", "-cp", folder, "-cn", "conf"], folder)
    return folder / "last.ckpt"


def assert_same_weights(fast, stock):
    fast, stock = weights(fast), weights(stock)
    assert stock and list(fast) == list(stock)
    for key, value in stock.items():
        assert relative_error(fast[key], value) < 1e-8, key


def test_a_training_run_ends_with_the_weights_of_the_stock_run(checkpoints):
    assert_same_weights(*checkpoints.values())


@pytest.mark.slow
def test_compiled_training_ends_with_the_same_weights(checkpoints, tmp_path):
    caches = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    compiled = train(tmp_path, True, "compile", template=TEMPLATE, **caches)
    assert_same_weights(compiled, checkpoints["stock"])


@pytest.mark.slow
def test_resumed_runs_and_a_stripped_checkpoint(checkpoints, tmp_path):
    """All end with the same weights; the stripped one goes on without fastmlip."""
    stripped = tmp_path / "stripped.ckpt"
    run(["fastmlip", "strip", checkpoints["fast"], "-o", stripped], tmp_path)
    assert not is_fast(loaded(stripped))
    started, ends = weights(checkpoints["stock"]), {}
    # NequIP takes the model of the checkpoint, whatever the config says
    (tmp_path / "conf.yaml").write_text((checkpoints["fast"].parent / "conf.yaml").read_text())
    for name, start in {**checkpoints, "stripped": stripped}.items():
        folder = tmp_path / name
        folder.mkdir()
        ends[name] = resumed(start, folder)
        assert is_fast(loaded(ends[name])) is (name == "fast")
    moved = weights(ends["stock"])
    assert any(relative_error(moved[key], value) > 1e-4 for key, value in started.items())
    assert_same_weights(ends["fast"], ends["stock"])
    assert_same_weights(ends["stripped"], ends["stock"])


def test_checkpoints_load_into_each_other(checkpoints, atoms):
    """The checkpoint keeps its modifier; weights go both ways, strictly."""
    models = {name: loaded(path) for name, path in checkpoints.items()}
    assert is_fast(models["fast"]) and not is_fast(models["stock"])
    for source, target in (("fast", "stock"), ("stock", "fast")):
        other = loaded(checkpoints[target])
        other.load_state_dict(models[source].state_dict(), strict=True)
        assert is_fast(other) is (target == "fast")
        assert_same_predictions(other, models[source], atoms)


def test_a_stripped_checkpoint_predicts_the_same(checkpoints, atoms, tmp_path):
    stripped = tmp_path / "stripped.ckpt"
    run(["fastmlip", "strip", checkpoints["fast"], "-o", stripped], tmp_path)
    stock = loaded(stripped)
    assert not is_fast(stock)
    assert_same_predictions(loaded(checkpoints["fast"]), stock, atoms)


@pytest.mark.parametrize("way", ["accelerate", "modify"])
@pytest.mark.parametrize("source", ["fast", "stock"])
def test_packages(source, way, packages, checkpoints, atoms):
    """They hold stock modules alone, copies of the installed ones, that can be accelerated."""
    names = zipfile.ZipFile(packages[source]).namelist()
    assert any("/allegro/" in name for name in names)
    assert not [name for name in names if "fastmlip" in name]
    stock, fast = from_package(packages[source]), from_package(packages[source])
    assert not is_fast(stock) and MODIFIER in get_all_modifiers(fast)
    assert type(stock.get_submodule("model.func.allegro")).__module__.startswith("<torch_package")
    assert_same_predictions(stock, loaded(checkpoints[source]), atoms)
    before = fast.state_dict()
    fastmlip.accelerate(fast) if way == "accelerate" else modify(fast, [{"modifier": MODIFIER}])
    assert is_fast(fast) and {row.status for row in fastmlip.summary(fast)} == {"swapped"}
    after = fast.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert_same_predictions(fast, stock, atoms)
    shift = [{"modifier": "modify_PerTypeScaleShift", "shifts": {"Cu": 0.5}}]
    energies = []
    for model in (stock, fast):  # later modifiers still find their modules
        modify(model, shift)
        energies.append(properties(calculator_of(model), atoms)[0])
    assert relative_error(*energies) < 1e-10


def test_a_packaged_model_is_tabulated(packages, atoms):
    stock = from_package(packages["stock"]).eval()
    table = fastmlip.tabulate(stock)
    assert "TabulatedEmbed" in {type(m).__name__ for m in table.modules()}
    want, got = (properties(calculator_of(m), atoms)[1] for m in (stock, table))
    assert 0 < (got - want).abs().max() < 1e-4


def in_a_plain_process(compiled, folder):
    """What NequIPCalculator gives where nothing is imported by hand."""
    printed = run(["python", "-W", "ignore", "-c", FRESH, compiled], folder)
    assert "outdated" not in printed  # torch's word for an archive with a list of libraries
    line = next(line for line in printed.splitlines() if line.startswith("["))
    return [torch.tensor(np.asarray(value)) for value in json.loads(line)]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["checkpoint", "package"])
def test_aotinductor_models_load_in_a_plain_process(source, checkpoints, packages, atoms, tmp_path):
    model = {"checkpoint": checkpoints["stock"], "package": packages["fast"]}[source]
    compiled = tmp_path / "model.nequip.pt2"
    run(["nequip-compile", model, compiled, *COMPILE, "--modifiers", MODIFIER], tmp_path)
    with zipfile.ZipFile(compiled) as archive:
        assert archive.read("nequip_custom_ops_libs.txt") == b"fastmlip"
        everything = b"".join(archive.read(name) for name in archive.namelist())
    assert all(name in everything for name in (b"contraction", b"env_sum", b"scalar_mlp"))
    want = properties(calculator_of(loaded(checkpoints["stock"])), atoms)
    for expected, value in zip(want, in_a_plain_process(compiled, tmp_path), strict=True):
        assert relative_error(value, expected) < 1e-10
    printed = run(["fastmlip", "check", compiled, "--against", checkpoints["stock"]], tmp_path)
    assert "all checks passed" in printed


@pytest.mark.slow
@pytest.mark.parametrize("command", ["modifier", "tabulate", "tabulate with structures"])
def test_tabulated_models_load_in_a_plain_process(command, checkpoints, atoms, tmp_path):
    model, compiled = checkpoints["fast"], tmp_path / "model.nequip.pt2"
    if command == "modifier":
        modifiers = ["--modifiers", "enable_FastMLIP_tabulated"]
        run(["nequip-compile", model, compiled, *COMPILE, *modifiers], tmp_path)
    else:
        atoms.write(tmp_path / "frames.xyz")
        frames = ["--structures", "frames.xyz"] if "structures" in command else []
        printed = run(["fastmlip", "tabulate", model, "-o", compiled, *frames], tmp_path)
        assert "max force error" in printed
    with zipfile.ZipFile(compiled) as archive:
        assert any(b"fastmlip::spline" in archive.read(name) for name in archive.namelist())
    stock = loaded(checkpoints["stock"])
    want, got = properties(calculator_of(stock), atoms), in_a_plain_process(compiled, tmp_path)
    assert 0 < (got[1] - want[1]).abs().max() < 1e-4
    assert abs(got[0] - want[0]) < 1e-4 * len(atoms)
    told = run(["fastmlip", "info", compiled], tmp_path)
    assert "table" in told
    for against in ("fast", "stock"):
        checked = run(["fastmlip", "check", compiled, "--against", checkpoints[against]], tmp_path)
        assert "all checks passed" in checked


def test_the_check_of_a_checkpoint_and_a_package(checkpoints, packages):
    names = ["energies", "forces", "stress", "parameter gradients", "rotations"]
    for path in (checkpoints["fast"], packages["stock"]):
        report = fastmlip.check(path, only=names)
        assert report.passed, report.failed
        assert "FastAllegro" in {row.module for row in report.modules}
        assert {"contraction_cpu", "env_sum_cpu", "scalar_mlp_cpu"} <= report.operators.keys()

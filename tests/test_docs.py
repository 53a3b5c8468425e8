"""The code of the pages: YAML in a complete config, Python and shell blocks as they stand."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from hydra.utils import instantiate
from nequip.data import AtomicDataDict
from omegaconf import OmegaConf
from typer.testing import CliRunner

from fastmlip.cli import app
from fastmlip.testing.process import run_python

pytestmark = pytest.mark.usefixtures("nequip_state")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GUIDE = DOCS / "energies.md"
PAGES = [
    *sorted(DOCS.glob("operators/*.md")),
    *(DOCS / f"{page}.md" for page in ("check", "benchmarks", "sevennet")),
]
NAMES = ["C", "H", "O"]
ENERGIES = {"C": -148.3, "H": -13.6, "O": -2041.8}
DATA = """
_target_: nequip.data.datamodule.ASEDataModule
seed: 1
train_file_path: FILE
val_file_path: FILE
transforms:
  - _target_: nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper
    model_type_names: [C, H, O]
    chemical_species_to_atom_type_map: {C: C, H: H, O: O}
  - _target_: nequip.data.transforms.NeighborListTransform
    r_max: 3.0
train_dataloader: {_target_: torch.utils.data.DataLoader, batch_size: 4}
val_dataloader: {_target_: torch.utils.data.DataLoader, batch_size: 4}
"""
MODELS = {
    "nequip": """
_target_: nequip.model.NequIPGNNModel
seed: 1
model_dtype: float32
type_names: [C, H, O]
r_max: 3.0
num_layers: 2
l_max: 1
num_features: 4
radial_mlp_width: 8
""",
    "allegro": """
seed: 1
model_dtype: float32
type_names: [C, H, O]
r_max: 3.0
l_max: 1
num_layers: 1
num_scalar_features: 8
num_tensor_features: 4
radial_chemical_embed:
  _target_: allegro.nn.TwoBodyBesselScalarEmbed
  num_bessels: 4
""",
}


def blocks(path, language):
    """The code blocks of one language, also those indented in lists, with their line numbers."""
    text = path.read_text()
    for match in re.finditer(r"^( *)```" + language + r"\n(.*?)^ *```$", text, re.M | re.S):
        line = text[: match.start()].count("\n") + 2
        yield pytest.param(textwrap.dedent(match[2]), id=f"{path.stem}:{line}")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Small molecules of all three types, and an isolated atom of each."""
    rng = np.random.default_rng(2)
    frames = [Atoms(name, [[0.0, 0.0, 0.0]]) for name in NAMES]
    for _ in range(9):
        kinds = [NAMES[i] for i in rng.integers(0, 3, 6)]
        grid = 1.3 * np.array([[i % 2, i // 2 % 2, i // 4] for i in range(6)])
        frames.append(Atoms(kinds, grid + 0.1 * rng.normal(size=(6, 3))))
    for atoms in frames:
        energy = sum(ENERGIES[name] for name in atoms.get_chemical_symbols())
        energy += 0.0 if len(atoms) == 1 else rng.normal()
        forces = (len(atoms) > 1) * rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    path = tmp_path_factory.mktemp("docs") / "data.extxyz"
    write(path, frames)
    return path


def complete(snippet, file):
    """The snippet over a small config; what it does not set gets a plain value."""
    snippet = OmegaConf.create(snippet)
    target = OmegaConf.select(snippet, "model._target_", default="nequip")
    package = target.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    base = OmegaConf.create(
        {
            "data": OmegaConf.create(DATA.replace("FILE", str(file))),
            "model": OmegaConf.create(MODELS[package]),
        }
    )
    config = OmegaConf.merge(base, snippet)
    if "stats_manager" not in config.data:  # that of the guide's first block
        config.data.stats_manager = {
            "_target_": "fastmlip.data.CommonDatasetStatistics",
            "type_names": NAMES,
        }
    defaults = {"avg_num_neighbors": 3.5, "per_type_energy_scales": 1.0,
                "per_type_energy_shifts": dict(ENERGIES)}  # fmt: skip
    for name, value in defaults.items():
        if name not in config.model.keys():  # noqa: SIM118 (`in` is false for an interpolation)
            config.model[name] = value
    if "training_module" not in config:
        config.training_module = {"model": "${model}"}  # merging would expand it
    return config


def as_nequip_train(config):
    """What ``nequip-train`` does up to the model: statistics, resolver, model, one batch."""
    data = OmegaConf.to_container(config.data, resolve=True)
    module = instantiate(data, _recursive_=False)
    stats = module.get_statistics("train")

    def resolver(name):
        value = stats.get(name)
        assert value is not None, name
        return value

    OmegaConf.register_new_resolver("training_data_stats", resolver, replace=True)
    try:
        training = OmegaConf.to_container(config.training_module, resolve=True)
    finally:
        OmegaConf.clear_resolver("training_data_stats")
    module.setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = instantiate(training["model"], _recursive_=False, _convert_="all")
    return stats, training["model"], model, next(iter(module.val_dataloader()[0]))


def as_dict(value):
    return value if isinstance(value, dict) else dict.fromkeys(NAMES, value)


def inner(settings):
    while "model" in settings:
        settings = settings["model"]
    return settings


@pytest.mark.parametrize("snippet", list(blocks(GUIDE, "yaml")))
def test_yaml_of_the_guide(snippet, file):
    if "module" in OmegaConf.create(snippet):
        module = instantiate(OmegaConf.create(snippet).module, _convert_="all")
        data = {"atomic_energy": torch.ones(3, 1), "atom_types": torch.tensor([2, 0, 1])}
        out = module(data)["atomic_energy"].flatten()
        assert out.tolist() == [1.25 - 2041.8, 1.25 - 1029.2, 1.25 - 13.6]
        return
    config = complete(snippet, file)
    _, settings, model, batch = as_nequip_train(config)
    out = model(dict(batch))
    wanted = ["atomic_energy", "total_energy"]
    wanted += ["forces"] if inner(settings).get("do_derivatives", True) else []
    for name in wanted:
        assert out[name].isfinite().all() and out[name].dtype == torch.float64
    # the limit of isolated atoms, exactly: the first three frames hold one atom each
    shifts = as_dict(inner(settings)["per_type_energy_shifts"])
    for modifier in settings.get("modifiers", []):
        shifts = {**shifts, **modifier.get("shifts", {})}
    lone = out["atomic_energy"][:3].flatten()
    assert lone.tolist() == [shifts[NAMES[t]] for t in batch["atom_types"][:3].flatten()]
    scale = next(m for n, m in model.named_modules() if n.endswith("per_type_energy_scale_shift"))
    scales = set(as_dict(inner(settings)["per_type_energy_scales"]).values())
    assert set(scale.scales.detach().flatten().tolist()) == scales


def test_energies_of_isolated_atoms_come_from_the_data(file):
    block = next(b.values[0] for b in blocks(GUIDE, "yaml") if "ignore_nan" in b.values[0])
    stats, settings, _, _ = as_nequip_train(complete(block, file))
    assert inner(settings)["per_type_energy_shifts"] == pytest.approx(ENERGIES, rel=1e-9)
    assert stats["isolated_atom_energies"] == inner(settings)["per_type_energy_shifts"]


def test_the_guide_has_blocks_and_each_is_checked():
    fences = GUIDE.read_text().count("```yaml")
    assert fences == len(list(blocks(GUIDE, "yaml"))) >= 14


def test_commands_of_the_guide(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data.extxyz").write_bytes(file.read_bytes())
    section = textwrap.indent(DATA.replace("FILE", "data.extxyz"), "  ")
    Path("config.yaml").write_text("data:" + section)
    commands = re.findall(r"^fastmlip (stats .*)$", GUIDE.read_text(), re.M)
    assert len(commands) == 2
    for command in commands:
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
        found = OmegaConf.create(result.stdout).dataset_statistics
        assert pytest.approx(-148.3) == found.isolated_atom_energies.C


@pytest.mark.parametrize("snippet", [b for page in PAGES for b in blocks(page, "python")])
def test_python_of_the_pages(snippet):
    run_python(snippet)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The folder of the page for beginners, all its blocks executed in order."""
    folder = tmp_path_factory.mktemp("started")
    page = (DOCS / "getting_started.md").read_text()
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S):
        name = re.match(r"# (\S+\.(?:py|yaml))\n", code)
        if name:
            (folder / name[1]).write_text(code)
        else:
            assert language == "sh", f"a block that is neither saved nor run: {code}"
            shell(code, folder)
    return folder


def shell(code, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", code], cwd=folder, env={**os.environ, "PATH": path},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_getting_started(started):
    for name in ("exact.nequip.pt2", "tabulated.nequip.pt2", "last.ckpt"):
        assert (started / name).stat().st_size > 0


# what the pages say before their blocks in words
IN_MEMORY = """
import fastmlip
import torch
from nequip.model import ModelFromCheckpoint
from nequip.utils.global_state import set_global_state
from fastmlip.integrations.nequip.models import describe
from ase.build import bulk

set_global_state()
model = ModelFromCheckpoint("last.ckpt", compile_mode="eager")["sole_model"].eval()
data = describe(model).frame(bulk("Cu", cubic=True), [0, 0, 0, 1])
"""


@pytest.mark.parametrize(
    "snippet",
    [b for p in ("README.md", "docs/molecular_dynamics.md") for b in blocks(ROOT / p, "python")],
)
def test_python_that_needs_a_model(snippet, started):
    shutil.copy(started / "exact.nequip.pt2", started / "model.nequip.pt2")
    (started / "block.py").write_text(IN_MEMORY + snippet)
    shell("python -W ignore block.py", started)


def test_commands_of_all_pages_exist():
    """Names and options of every line that calls our command."""
    commands = typer.main.get_command(app).commands
    lines = []
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        for block in blocks(page, "sh"):
            lines += re.findall(r"^fastmlip (?!-)(.*)$", block.values[0], re.M)
    assert len(lines) > 10
    for line in lines:
        words = shlex.split(line, comments=True)
        known = {option for p in commands[words[0]].params for option in p.opts}
        assert {word for word in words if word.startswith("-")} <= known, line


def test_field_names_are_those_of_nequip():
    from fastmlip.data import seen

    assert (seen.TYPES, seen.EDGES) == (AtomicDataDict.ATOM_TYPE_KEY, AtomicDataDict.EDGE_INDEX_KEY)
    assert (seen.ENERGY, seen.FORCES) == (AtomicDataDict.TOTAL_ENERGY_KEY, AtomicDataDict.FORCE_KEY)

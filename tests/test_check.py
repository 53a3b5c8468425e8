"""``fastmlip check``: what it takes, what it says, and what it leaves as it was."""

import json
from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.io import write
from nequip_cases import TYPE_NAMES, build, rattled
from omegaconf import OmegaConf
from test_nequip_workflows import CONFIG, run
from typer.testing import CliRunner

import fastmlip
from fastmlip.checks import run as checks_run
from fastmlip.checks.report import Report
from fastmlip.checks.table import CHECKS
from fastmlip.cli import app
from fastmlip.integrations import hosts
from fastmlip.integrations.nequip.models import NequIPModel

pytestmark = pytest.mark.usefixtures("nequip_state")

QUICK = ["energies", "forces", "rotations"]
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are too small for more, which would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A training config with the modifier, ZBL and statistics of data that are never read."""
    path = tmp_path_factory.mktemp("check") / "conf.yaml"
    text = CONFIG.format(
        modifiers="[{modifier: enable_FastMLIP}]", compile_mode="compile", sanity=0
    )
    path.write_text(text.replace("EMTTestDataset", "NoSuchDataset"))
    return path


@pytest.fixture(scope="module")
def checkpoint(config):
    """As Lightning writes it, of a model whose averaged weights are others than the last ones."""
    from nequip.train import EMALightningModule

    section = OmegaConf.load(config).training_module
    section.model.model.update({
        "avg_num_neighbors": 10.0, "per_type_energy_scales": 1.0, "per_type_energy_shifts": -3.0,
        "model_dtype": "float32", "compile_mode": "eager",
    })  # fmt: skip
    settings = OmegaConf.to_container(section)
    target = settings.pop("_target_")
    counts = {"train": 1, "val": 1, "test": 0, "predict": 0}
    info = {"versions": {}, "training_module": {"_target_": target}}
    module = EMALightningModule(num_datasets=counts, info_dict=info, **settings)
    with torch.no_grad():
        for averaged in module.ema.ema_weights:
            averaged.mul_(1.25)
    path = config.parent / "last.ckpt"
    saved = {
        "state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.5.0",
    }  # fmt: skip
    module.on_save_checkpoint(saved)
    torch.save(saved, path)
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def said(result):
    """In one line, without the frame around an error."""
    return " ".join(result.output.replace("│", " ").split())


def only(names):
    return [word for name in names for word in ("--only", name)]


def test_a_config_is_checked_without_its_data(config, tmp_path):
    file = tmp_path / "report.json"
    result = invoke(config, "--json", file, *only([*QUICK, "parameter gradients"]))
    assert result.exit_code == 0, result.output
    assert "5 checks passed" in result.output
    assert "FastTensorProductScatter swapped" in result.output and "FastZBL" in result.output
    report = json.loads(file.read_text())
    assert report["passed"] and report["backend"] == "cpp" and report["dtype"] == "float64"
    assert report["operators"]["tensor_product_conv_double_backward_cpu"] == 2
    assert {row["status"] for row in report["modules"]} == {"swapped"}
    assert [row["name"] for row in report["results"]][:2] == ["operators", "energies"]
    assert 0 < report["results"][2]["error"] < 1e-12
    assert any("avg_num_neighbors" in note and "20" in note for note in report["notes"])


def test_hydra_and_interpolations_of_the_example():
    host = hosts.load(EXAMPLES / "nequip_fastmlip.yaml", "float64")
    assert host.type_names == ["Cu", "Pd", "Au"] and host.r_max == 5.0
    assert host.dtype is torch.float64
    assert not any(row.status == "swapped" for row in fastmlip.integrations.swap.report(host.model))
    assert torch.get_default_dtype() is torch.float64  # what the fixture has set


def test_statistics_per_type_differ_from_type_to_type(config):
    settings = OmegaConf.load(config)
    settings.training_module.model.model.type_names = ["Cu", "Ag"]
    settings.training_module.model.model.pair_potential.chemical_species = ["Cu", "Ag"]
    path = config.parent / "two.yaml"
    OmegaConf.save(settings, path)
    (module,) = (
        m for m in hosts.load(path).model.modules() if type(m).__name__ == "PerTypeScaleShift"
    )
    assert module.scales.flatten().tolist() == [1.0, 1.1]
    assert module.shifts.flatten().tolist() == [-1.0, -0.9]


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_a_checkpoint_with_its_averaged_weights(checkpoint, dtype):
    host = hosts.load(checkpoint, dtype)
    assert host.dtype is (torch.float64 if dtype else torch.float32)
    saved = torch.load(checkpoint, weights_only=False)
    name = next(k for k in saved["state_dict"] if k.startswith("model.") and "linear_1" in k)
    weight = host.model.get_parameter(name.split(".", 2)[2])
    assert torch.allclose(weight.float(), 1.25 * saved["state_dict"][name].float())
    report = fastmlip.check(checkpoint, dtype=dtype, only=QUICK)
    assert report.passed and report.dtype == str(host.dtype).removeprefix("torch.")
    assert (report["energies"].error < 1e-12) is (dtype == "float64")


def test_the_model_in_memory_stays_as_it_was():
    model = build("tiny", "float64").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    random, default = torch.get_rng_state(), torch.get_default_dtype()
    report = fastmlip.check(
        model, rattled_na_cl(), only=["energies", "gradient differences", "repeatability"]
    )
    assert report.passed
    assert model.training and [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state()) and torch.get_default_dtype() is default
    assert not torch.are_deterministic_algorithms_enabled()


def rattled_na_cl():
    atoms = rattled()
    atoms.symbols[:] = ["Na", "Cl", "Na", "Cl"]
    return atoms


def test_a_model_that_is_accelerated_already_is_compared_with_the_reference(monkeypatch):
    model = fastmlip.accelerate(build("tiny", "float64"))
    report = fastmlip.check(model, only=QUICK)
    assert report.passed and "reference" in report.notes[0]
    from fastmlip.ops import tensor_product_conv as _  # noqa: F401
    from fastmlip.ops.tensor_product_conv import _CPP

    run = _CPP["forward"]
    monkeypatch.setitem(_CPP, "forward", lambda *operands: 1.001 * run(*operands))
    assert [row.name for row in fastmlip.check(model, only=QUICK).failed] == ["energies", "forces"]


def test_models_for_compilation_are_checked_eager():
    model = build("tiny", "float64", compile_mode="compile")
    report = fastmlip.check(model, only=QUICK)
    assert report.passed and "eager" in report.notes[0]
    assert not model._compiled_cache[0]


def test_models_of_energies_only():
    model = build("tiny", "float64", do_derivatives=False)
    report = fastmlip.check(model)
    assert report.passed
    skipped = {row.name: row.note for row in report.results if row.status == "skipped"}
    assert skipped["forces"] == skipped["Hessian"] == "it computes no forces"
    assert report["parameter gradients"].status == report["rotations"].status == "passed"


def test_allegro():
    AllegroModel = pytest.importorskip("allegro.model").AllegroModel
    model = AllegroModel(
        seed=1, model_dtype="float64", type_names=["Si", "C"], r_max=4.0, l_max=2, num_layers=2,
        num_scalar_features=8, num_tensor_features=4, avg_num_neighbors=12.0,
        per_edge_type_cutoff={"Si": 3.5, "C": {"Si": 4.0, "C": 3.0}},
        radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed"},
    )  # fmt: skip
    report = fastmlip.check(model, only=[*QUICK, "one-sided edges", "force differences"])
    assert report.passed, report.failed
    assert report.operators.keys() >= {"edge_embedding_cpu", "edge_embedding_double_backward_cpu"}


def test_structures_of_a_file(tmp_path):
    """Displaced, too: in a perfect crystal all forces are zero."""
    frames = [Atoms("NaCl", [[0, 0, 0], [2.8, 0, 0]]), rattled_na_cl()]
    perfect = Atoms("Na", [[0, 0, 0]], cell=[3.0, 3.0, 3.0], pbc=True)
    write(tmp_path / "all.extxyz", [*frames, *[perfect] * 7])
    report = fastmlip.check(
        build("tiny", "float64"), tmp_path / "all.extxyz",
        only=[*QUICK, "force differences"], frames=2,
    )  # fmt: skip
    assert report.passed
    assert [row["name"] for row in report.structures] == ["all.extxyz[0]", "all.extxyz[8]"]
    one = fastmlip.check(build("tiny", "float32"), perfect, only=QUICK)
    assert one.passed and one.structures[0]["atoms"] == 1


def test_another_model_to_compare_with(checkpoint):
    same = fastmlip.check(build("tiny", "float64"), against=build("tiny", "float64"), only=QUICK)
    assert same.passed
    other = build("tiny", "float64", seed=8)
    report = fastmlip.check(build("tiny", "float64"), against=other, only=QUICK)
    assert [row.name for row in report.failed] == ["energies", "forces"]
    wide, single = build("tiny", "float64"), build("tiny", "float32")
    wide.load_state_dict(single.state_dict())
    rounded = fastmlip.check(wide, against=single, only=QUICK)
    assert rounded.dtype == "float32" and rounded.passed
    with pytest.raises(ValueError, match=r"against: .* the types \['Cu'\]"):
        fastmlip.check(build("tiny", "float64"), against=checkpoint)


def as_compiled(model, monkeypatch):
    """A host like that of a compiled model: named inputs, no graph, no other derivatives."""
    keys = ("pos", "edge_index", "atom_types", "cell", "edge_cell_shift")

    class Compiled(torch.nn.Module):
        def forward(self, data):
            with torch.enable_grad():
                out = model({key: data[key] for key in keys})
            return {k: out[k].detach() for k in ("atomic_energy", "forces", "virial")}

    host = NequIPModel(Compiled(), "model.nequip.pt2", "compiled", torch.float64, TYPE_NAMES, 3.6)
    monkeypatch.setattr(hosts, "load", lambda *arguments: host)


def test_compiled_models(monkeypatch):
    fast = fastmlip.accelerate(build("tiny", "float64"))
    as_compiled(fast, monkeypatch)
    report = fastmlip.check("model.nequip.pt2")
    assert report.passed and report.modules == []
    passed = [row.name for row in report.results if row.status == "passed"]
    assert passed == [
        "operators", "signal", "force differences", "stress differences", "Jacobian symmetry",
        "rotations", "inversion", "translations", "atom order", "edge order", "repeatability",
    ]  # fmt: skip
    paired = fastmlip.check("model.nequip.pt2", against=build("tiny", "float64"))
    assert paired.passed
    assert {paired[name].status for name in ("energies", "stress", "one-sided edges")} == {"passed"}


def test_a_wrong_compiled_model_fails(monkeypatch):
    as_compiled(fastmlip.accelerate(build("tiny", "float64")), monkeypatch)
    from fastmlip.ops.tensor_product_conv import _CPP

    run = _CPP["backward"]
    monkeypatch.setitem(_CPP, "backward", lambda *o: tuple(1.01 * grad for grad in run(*o)))
    report = fastmlip.check("model.nequip.pt2")
    assert {"force differences", "Jacobian symmetry"} <= {row.name for row in report.failed}


def test_a_swap_that_is_not_used_fails():
    swapped = fastmlip.integrations.swap.Row("a", "B", "swapped", "")
    report = Report("", "memory", "float64", "cpu", 0, "", "cpp", {}, [swapped], [], {})
    assert checks_run._operators_row(report).status == "failed"
    report.backend = "reference"
    assert checks_run._operators_row(report).note == "plain PyTorch ran, no kernel"


@pytest.mark.parametrize(
    ("fused", "stock", "status"),
    [(9e-4, 0.0, "passed"), (5e-3, 3e-3, "passed"), (5e-3, 2e-3, "failed"), (2e-2, 1.0, "failed"),
     (float("nan"), 1.0, "failed"), (float("inf"), float("inf"), "failed")],
)  # fmt: skip
def test_stock_that_is_off_itself_allows_for_more_up_to_a_limit(fused, stock, status, monkeypatch):
    def measure(context, side):
        yield "here", 0.0
        yield "there", stock if side is context.stock else fused

    row = CHECKS[1]._replace(float64=1e-3, measure=measure)
    monkeypatch.setattr(checks_run, "CHECKS", (row,))
    result = fastmlip.check(build("tiny", "float64"))[row.name]
    assert result.status == status
    assert (result.stock is None) is (fused < 1e-3) and result.where == "there"


def test_a_model_without_interactions_fails():
    """Zero equals zero, which shows nothing."""
    model = build("tiny", "float64", per_type_energy_scales=0.0)
    report = fastmlip.check(model, only=["signal", "forces"])
    assert [row.name for row in report.failed] == ["signal"]


def test_a_run_that_checks_nothing_fails(monkeypatch):
    as_compiled(fastmlip.accelerate(build("tiny", "float64")), monkeypatch)
    report = fastmlip.check("model.nequip.pt2", only=["forces"])
    assert not report.passed and [row.name for row in report.undone] == ["forces"]
    assert fastmlip.check("model.nequip.pt2", only=["rotations"]).passed
    only_operators = fastmlip.check(build("tiny", "float64"), only=["operators"])
    assert only_operators.passed and [r.name for r in only_operators.results] == ["operators"]


def test_a_tabulated_model_against_the_exact_one_has_the_tolerance_of_its_tables():
    model = build("tiny", "float64").eval()
    table = fastmlip.tabulate(model, tol=1e-4)
    report = fastmlip.check(table, against=model)
    assert report.passed, report.failed
    assert 1e-10 < report["forces"].error < report["forces"].tolerance < 0.1
    assert "tables" in report["Hessian"].note
    wrong = build("tiny", "float64", seed=8)
    assert "forces" in [row.name for row in fastmlip.check(table, against=wrong).failed]


def test_a_misspelt_statistic_is_refused(config, tmp_path):
    path = tmp_path / "misspelt.yaml"
    path.write_text(config.read_text().replace(":per_type_forces_rms}", ":per_type_force_rms}"))
    result = invoke(path)
    assert result.exit_code == 2
    assert "did you mean per_type_forces_rms" in said(result)


def test_names_of_checks_are_unique_and_documented():
    names = [row.name for row in CHECKS]
    assert len(set(names)) == len(names) and not any("," in name for name in names)
    page = (EXAMPLES.parent / "docs" / "check.md").read_text()
    for row in CHECKS:
        assert f"| {row.name} |" in page, row.name
        if row.float64:
            assert f"| {row.float64:.0e} | {row.float32:.0e} |" in page, row.name


@pytest.mark.slow
def test_package_and_compiled_model(checkpoint, tmp_path):
    package, compiled = tmp_path / "model.nequip.zip", tmp_path / "model.nequip.pt2"
    host = hosts.load(checkpoint)
    del host
    data = OmegaConf.load(checkpoint.parent / "conf.yaml").data
    saved = torch.load(checkpoint, weights_only=False)
    data.split_dataset.dataset._target_ = "nequip.data.dataset.EMTTestDataset"
    data.pop("stats_manager")
    saved["hyper_parameters"]["info_dict"] |= {"data": OmegaConf.to_container(data)}
    torch.save(saved, checkpoint)
    run(["nequip-package", "build", checkpoint, package], tmp_path)
    assert fastmlip.check(package).passed
    command = ["nequip-compile", package, compiled, "--mode", "aotinductor", "--device", "cpu"]
    run([*command, "--target", "ase", "--modifiers", "enable_FastMLIP"], tmp_path)
    report = fastmlip.check(compiled, against=package)
    assert report.passed, report.failed
    assert report["energies"].error > 0 and "radial_conv_cpu" in report.operators

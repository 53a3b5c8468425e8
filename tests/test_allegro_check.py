"""``fastmlip.check`` of Allegro's models; operators that are broken on purpose: a named check must
see it."""

import importlib

import pytest
import torch
from nequip_cases import rattled
from omegaconf import OmegaConf
from typer.testing import CliRunner

import fastmlip
from fastmlip import ops
from fastmlip.cli import app

pytest.importorskip("allegro")
from test_allegro import build

pytestmark = pytest.mark.usefixtures("nequip_state")

MODULES = {
    name: importlib.import_module(f"fastmlip.ops.{name}")
    for name in ("env_sum", "contraction", "spline", "scalar_mlp", "_spline")
}
ENV, CONTRACTION, SPLINE = (MODULES[name]._CPP for name in ("env_sum", "contraction", "spline"))
MLP, SPLINES = MODULES["scalar_mlp"]._LADDER, MODULES["_spline"]
SMALL = {"num_tensor_features": 4, "avg_num_neighbors": 8.0}
OPERATORS = {
    f"{name}{rung}_cpu"
    for name in ("env_sum", "contraction", "scalar_mlp")
    for rung in ("", "_backward", "_double_backward")
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are too small for more, which would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(nequip_state):
    return build("l2", "float64", **SMALL)


@pytest.fixture(scope="module")
def table(model):
    return fastmlip.tabulate(model, tol=1e-4)


@pytest.fixture(scope="module")
def atoms():
    crystal = rattled()
    crystal.symbols[:] = ["Na", "Cl", "O", "Cl"]
    return crystal


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("l2", "float64"),
        ("l2", "float32"),
        ("l2 parity, 3 layers", "float64"),
        ("splines", "float64"),
        ("cutoffs of pairs", "float64"),
    ],
)
def test_a_model_in_memory(name, dtype):
    """Every check there is."""
    report = fastmlip.check(build(name, dtype, **SMALL))
    assert report.passed, report.failed
    skipped = [row.name for row in report.results if row.status == "skipped"]
    assert skipped == ["Jacobian symmetry"]
    assert report.operators.keys() >= OPERATORS and report.backend == "cpp"
    assert {"FastAllegro", "FastTensorEmbed"} <= {row.module for row in report.modules}


def test_a_tabulated_model_against_the_exact_one(model, table):
    report = fastmlip.check(table, against=model)
    assert report.passed, report.failed
    assert 1e-10 < report["forces"].error < report["forces"].tolerance < 0.1
    assert report["Hessian differences"].status == "passed"
    assert {"spline_cpu", "spline_backward_cpu"} <= report.operators.keys()
    wrong = build("l2", "float64", **SMALL, seed=8)
    report = fastmlip.check(table, against=wrong, only=["forces"])
    assert [row.name for row in report.failed] == ["forces"]


def test_a_tabulated_model_by_itself(table, atoms):
    report = fastmlip.check(table, atoms)
    assert report.passed, report.failed
    assert "spline_cpu" in report.operators


CONFIG = {
    "training_module": {
        "_target_": "nequip.train.EMALightningModule",
        "model": {
            "_target_": "nequip.model.modify",
            "modifiers": [{"modifier": "enable_FastMLIP"}],
            "model": {
                "_target_": "allegro.model.AllegroModel", "seed": 1, "model_dtype": "float32",
                "type_names": ["Na", "Cl"], "r_max": 3.6, "l_max": 2, "parity": True,
                "num_layers": 2, "num_scalar_features": 8, "num_tensor_features": 4,
                "allegro_mlp_hidden_layers_width": 8, "readout_mlp_hidden_layers_width": 8,
                "radial_chemical_embed": {
                    "_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4,
                },
                "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
                "per_type_energy_scales": "${training_data_stats:per_type_forces_rms}",
                "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
                "pair_potential": {
                    "_target_": "nequip.nn.pair_potential.ZBL", "units": "metal",
                    "chemical_species": "${training_module.model.model.type_names}",
                },
            },
        },
    }
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_command_takes_a_config(dtype, tmp_path):
    """Its statistics are those of data that are never read."""
    OmegaConf.save(OmegaConf.create(CONFIG), tmp_path / "conf.yaml")
    names = ["energies", "forces", "stress", "parameter gradients", "Hessian", "rotations"]
    chosen = [word for name in names for word in ("--only", name)]
    command = ["check", str(tmp_path / "conf.yaml"), "--dtype", dtype, *chosen]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "7 checks passed" in result.output
    for name in ("FastAllegro", "FastTensorEmbed", "FastZBL"):
        assert f"{name} swapped" in " ".join(result.output.replace("│", " ").split())


def only_output(rungs, rung, which, factor=1.01):
    """One output of one rung, or (None) its only one, is off by a factor."""

    def fault(patch):
        run = rungs[rung]

        def wrong(*operands):
            out = run(*operands)
            if which is None:
                return out * factor
            return (*out[:which], out[which] * factor, *out[which + 1 :])

        patch.setitem(rungs, rung, wrong)

    return fault


def kept_columns(patch):
    """The second half of what a network gives, the weights of tensor features, is that of other
    edges."""
    run = MLP["forward"]

    def wrong(*operands):
        out, out2, kept = run(*operands)
        return out, out2.roll(1, 0), kept

    patch.setitem(MLP, "forward", wrong)


def no_environment_of_last_edge(patch):
    run = ops.env_sum

    def wrong(weight, attr, *more):
        last = torch.arange(len(attr))[:, None] == len(attr) - 1
        return run(weight, torch.where(last, torch.zeros_like(attr), attr), *more)

    patch.setattr(ops, "env_sum", wrong)


def swapped_neighbours(patch):
    """Products take the environment of another atom."""
    run = ops.contraction

    def wrong(x, env, *more):
        return run(x, env.roll(1, 0), *more)

    patch.setattr(ops, "contraction", wrong)


def bent(patch):
    """The spline's second derivative, which its formula makes of torch's operators."""
    basis = SPLINES.basis
    patch.setattr(
        SPLINES,
        "basis",
        lambda place, order=0: (1.01 if order == 2 else 1.0) * basis(place, order),
    )


HESSIAN = ["Hessian", "Hessian differences"]
TRAINED = ["parameter gradients", "gradient differences"]
GRADIENTS = [*TRAINED, *HESSIAN]
FORCES = ["forces", "stress", "force differences", "stress differences"]
VALUES, HEALTHY = ["energies", "forces"], ["force differences"]
FAULTS = {
    "env_sum": (only_output(ENV, "forward", None), VALUES, ["rotations", *HEALTHY]),
    "env_sum, an edge": (no_environment_of_last_edge, [*VALUES, "edge order"], HEALTHY),
    "env_sum, gradient of edge_weight": (only_output(ENV, "backward", 0), FORCES, ["energies"]),
    "env_sum, gradient of edge_attr": (only_output(ENV, "backward", 1), FORCES, ["energies"]),
    **{
        f"env_sum, second derivative, {name}": (
            only_output(ENV, "double_backward", which), GRADIENTS, ["energies", *FORCES],
        )
        for which, name in enumerate(("grad", "edge_weight"))
    },
    "env_sum, second derivative, edge_attr": (  # no parameter comes before the harmonics
        only_output(ENV, "double_backward", 2), HESSIAN, ["energies", *TRAINED, *FORCES],
    ),
    "contraction": (only_output(CONTRACTION, "forward", None), VALUES, ["rotations", *HEALTHY]),
    "contraction, another atom": (swapped_neighbours, [*VALUES, "atom order"], HEALTHY),
    **{
        f"contraction, gradient of {name}": (
            only_output(CONTRACTION, "backward", which), FORCES, ["energies"],
        )
        for which, name in enumerate(("x", "edge_attr", "env"))
    },
    "contraction, gradient of weight": (
        only_output(CONTRACTION, "backward", 3), TRAINED, ["energies", "Hessian", *FORCES],
    ),
    **{
        f"contraction, second derivative, {name}": (
            only_output(CONTRACTION, "double_backward", which), GRADIENTS, ["energies", *FORCES],
        )
        for which, name in ((0, "grad"), (1, "x"), (3, "env"))
    },
    "contraction, second derivative, edge_attr": (
        only_output(CONTRACTION, "double_backward", 2), HESSIAN, ["energies", *TRAINED, *FORCES],
    ),
    "contraction, second derivative, weight": (
        only_output(CONTRACTION, "double_backward", 4), TRAINED, ["energies", "Hessian", *FORCES],
    ),
    "scalar_mlp": (only_output(MLP, "forward", 0), VALUES, ["rotations", *HEALTHY]),
    "scalar_mlp, other edges": (kept_columns, [*VALUES, "edge order"], []),
    "scalar_mlp, gradient of x": (only_output(MLP, "backward", 0), FORCES, ["energies"]),
    "scalar_mlp, gradient of weights": (
        only_output(MLP, "backward", 1), TRAINED, ["energies", "Hessian", *FORCES],
    ),
    **{
        f"scalar_mlp, second derivative, {name}": (
            only_output(MLP, "double_backward", which), GRADIENTS, ["energies", *FORCES],
        )
        for which, name in enumerate(("grad", "x"))
    },
    "scalar_mlp, second derivative, weights": (
        only_output(MLP, "double_backward", 2), TRAINED, ["energies", "Hessian", *FORCES],
    ),
}  # fmt: skip


def statuses(report, seen, unseen):
    return {name: report[name].status for name in [*seen, *unseen]}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault, model, atoms, monkeypatch):
    inject, seen, unseen = FAULTS[fault]
    inject(monkeypatch)
    report = fastmlip.check(model, atoms, only=[*seen, *unseen])
    assert not report.passed
    expected = {**dict.fromkeys(seen, "failed"), **dict.fromkeys(unseen, "passed")}
    assert statuses(report, seen, unseen) == expected


SPLINE_FAULTS = {
    "spline": (only_output(SPLINE, "forward", None), VALUES, ["rotations"]),
    "spline, gradient": (only_output(SPLINE, "backward", None), FORCES, ["energies"]),
    "spline, second derivative": (bent, ["Hessian differences"], ["energies", *FORCES]),
}


@pytest.mark.parametrize("fault", SPLINE_FAULTS)
@pytest.mark.parametrize("against", [True, False], ids=["exact", "itself"])
def test_a_fault_of_the_spline_is_seen(fault, against, model, table, atoms, monkeypatch):
    """Against the exact model, and against the same tables read by the reference."""
    inject, seen, unseen = SPLINE_FAULTS[fault]
    inject(monkeypatch)
    more = {"against": model} if against else {}
    report = fastmlip.check(table, atoms, only=[*seen, *unseen], **more)
    expected = {**dict.fromkeys(seen, "failed"), **dict.fromkeys(unseen, "passed")}
    assert statuses(report, seen, unseen) == expected

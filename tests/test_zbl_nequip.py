"""ZBL in NequIP and Allegro models: swapped in, or named in the config, against stock."""

import json
from pathlib import Path

import pytest
import torch
from nequip.model.modify_utils import modify
from nequip_cases import (
    R_MAX,
    build,
    force_loss_gradients,
    outputs,
    relative_error,
    structures,
)

import fastmlip
from fastmlip.integrations.nequip.zbl import FastZBL
from fastmlip.testing.process import run_python

pytestmark = pytest.mark.usefixtures("nequip_state")

SPECIES = ["Na", "Cl", "O"]
STOCK = {
    "_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": SPECIES,
}  # fmt: skip
OURS = {**STOCK, "_target_": "fastmlip.nn.ZBL"}
BOUND = {"float64": 1e-12, "float32": 1e-6}
CUTOFFS = {"Na": 2.9, "Cl": {"Na": 3.1, "O": 3.5}}


@pytest.fixture(scope="module")
def data():
    return structures()


def with_zbl(zbl, dtype="float64", config="tiny", **more):
    return build(config, dtype, pair_potential=dict(zbl), **more)


def zbl_of(model):
    return next(m for m in model.modules() if type(m).__name__ in ("ZBL", "FastZBL"))


def only_zbl(dtype="float64", p=6, **more):
    from nequip.model import ZBLPairPotential

    return ZBLPairPotential(
        seed=1, model_dtype=dtype, r_max=R_MAX, type_names=SPECIES, chemical_species=SPECIES,
        units="real", polynomial_cutoff_p=p, **more,
    ).eval()  # fmt: skip


MODELS = {
    "swapped": lambda dtype: (with_zbl(STOCK, dtype), fastmlip.accelerate(with_zbl(STOCK, dtype))),
    "named": lambda dtype: (with_zbl(STOCK, dtype), with_zbl(OURS, dtype)),
    "both": lambda dtype: (with_zbl(STOCK, dtype), fastmlip.accelerate(with_zbl(OURS, dtype))),
    "per-edge-type cutoffs": lambda dtype: tuple(
        with_zbl(zbl, dtype, per_edge_type_cutoff=CUTOFFS) for zbl in (STOCK, OURS)
    ),
    "only ZBL": lambda dtype: (only_zbl(dtype, p=5), fastmlip.accelerate(only_zbl(dtype, p=5))),
}


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_training_gradients_match_stock(name, dtype, data):
    stock, fast = MODELS[name](dtype)
    assert type(zbl_of(fast)).__module__.startswith("fastmlip.")
    assert type(zbl_of(stock)).__module__.startswith("nequip.")
    for structure, frame in data.items():
        want, got = outputs(stock, frame), outputs(fast, frame)
        sizes = want["atomic_energy"].abs().sum()
        for key, reference in want.items():
            assert got[key].dtype == reference.dtype
            scale = sizes if key == "total_energy" else None
            error = relative_error(got[key], reference, scale)
            assert error <= BOUND[dtype], f"{structure}: {key} {error:.1e}"
        if name == "only ZBL":
            continue  # nothing to train
        want, got = force_loss_gradients(stock, frame), force_loss_gradients(fast, frame)
        for key, reference in want.items():
            assert relative_error(got[key], reference) <= 5 * BOUND[dtype], f"{structure}: {key}"


def test_the_hessian_of_a_model_of_zbl_alone_matches_stock(data):
    stock, fast = MODELS["only ZBL"]("float64")
    hessians = []
    for model in (stock, fast):
        frame = dict(data["own images"])
        energy = model.func if hasattr(model, "func") else model.model.func
        pos = frame["pos"].clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            energy({**frame, "pos": pos})["total_energy"].sum(), pos, create_graph=True
        )
        rows = [torch.autograd.grad(v, pos, retain_graph=True)[0] for v in slope.flatten()]
        hessians.append(torch.stack(rows))
    assert hessians[0].abs().max() > 0.1
    assert relative_error(*reversed(hessians)) <= 1e-12


def test_the_potential_is_a_large_part_of_what_is_compared(data):
    """Without this, a model whose ZBL does nothing would pass."""
    frame = data["own images"]
    plain, model = outputs(build("tiny", "float64"), frame), outputs(with_zbl(OURS), frame)
    for key in ("atomic_energy", "forces", "stress"):
        assert relative_error(plain[key], model[key]) > 0.1


@pytest.mark.parametrize("dtype", BOUND)
def test_state_dicts_are_identical_and_load_both_ways(dtype, data):
    stock, named = with_zbl(STOCK, dtype), with_zbl(OURS, dtype)
    swapped = fastmlip.accelerate(with_zbl(STOCK, dtype))
    want = stock.state_dict()
    for model in (named, swapped):
        got = model.state_dict()
        assert list(got) == list(want)
        for key, value in want.items():
            assert got[key].dtype == value.dtype and torch.equal(got[key], value)
    prefactor = next(key for key in want if key.endswith("_qqr2exesquare"))
    changed = {**want, prefactor: want[prefactor] * 3}
    for model in (stock, named, swapped):
        model.load_state_dict(changed)
    frame = data["own images"]
    reference = outputs(stock, frame)["atomic_energy"]
    for model in (named, swapped):
        assert relative_error(outputs(model, frame)["atomic_energy"], reference) <= BOUND[dtype]


def test_summary_and_the_hosts_attributes(capsys):
    stock = with_zbl(STOCK)
    rows = {row.path: row for row in fastmlip.summary(stock)}
    assert rows["model.func.pair_potential"].status == "ready"
    old = zbl_of(stock)
    fast = modify(stock, [{"modifier": "enable_FastMLIP"}])
    new = zbl_of(fast)
    assert type(new) is FastZBL and fastmlip.accelerate(fast) is fast and zbl_of(fast) is new
    for name in ("irreps_in", "irreps_out", "per_atom_energy_field", "model_dtype"):
        assert getattr(new, name) == getattr(old, name)
    assert {row.status for row in fastmlip.summary(fast)} == {"swapped"}
    assert fast.metadata["nequip_custom_ops_libs"] == "fastmlip"
    named = with_zbl(OURS)
    assert {row.status for row in fastmlip.summary(named)} == {"ready", "swapped"}
    assert named.metadata["nequip_custom_ops_libs"] == "fastmlip"


def test_another_envelope_is_left_alone_and_said():
    model = with_zbl(STOCK)
    zbl_of(model).cutoff = torch.nn.Identity()
    with pytest.warns(UserWarning, match="pair_potential: its cutoff is a Identity"):
        fastmlip.accelerate(model)
    model = with_zbl(STOCK)
    del zbl_of(model)._qqr2exesquare
    with pytest.warns(UserWarning, match="unknown version .* without _qqr2exesquare"):
        fastmlip.accelerate(model)


@pytest.mark.parametrize("zbl", [STOCK, OURS], ids=["swapped", "named"])
def test_allegro(zbl, data):
    allegro = pytest.importorskip("allegro.model")
    kwargs = {
        "seed": 3, "model_dtype": "float64", "r_max": R_MAX, "type_names": SPECIES, "l_max": 1,
        "num_layers": 1, "num_scalar_features": 8, "num_tensor_features": 4,
        "avg_num_neighbors": 12.0, "radial_chemical_embed": {
            "_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4,
        },
        "scalar_embed_mlp_hidden_layers_depth": 1, "scalar_embed_mlp_hidden_layers_width": 8,
        "allegro_mlp_hidden_layers_depth": 1, "allegro_mlp_hidden_layers_width": 8,
        "readout_mlp_hidden_layers_depth": 1, "readout_mlp_hidden_layers_width": 4,
    }  # fmt: skip
    stock = allegro.AllegroModel(**kwargs, pair_potential=dict(STOCK)).eval()
    fast = allegro.AllegroModel(**kwargs, pair_potential=dict(zbl)).eval()
    if zbl is STOCK:
        fastmlip.accelerate(fast)
    assert type(zbl_of(fast)).__module__.startswith("fastmlip.")
    for frame in data.values():
        want, got = outputs(stock, frame), outputs(fast, frame)
        for key, reference in want.items():
            assert relative_error(got[key], reference) <= 1e-12


def test_an_isolated_atom_has_its_own_energy_and_a_close_pair_repels(data):
    """E_i = E0 exactly; at 0.5 A the force is ZBL's, hundreds of eV/A outwards."""
    shifts = {"Na": -3.25, "Cl": 2.0, "O": -1.0}
    model = with_zbl(OURS, per_type_energy_shifts=shifts)
    assert outputs(model, data["lone atom"])["atomic_energy"].item() == -3.25
    close = dict(data["own images"])
    close["pos"] = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    vectors = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]])
    close.update(edge_index=torch.tensor([[0, 1], [1, 0]]), edge_cell_shift=torch.zeros(2, 3))
    assert torch.equal(close["pos"][1] - close["pos"][0], vectors[0])
    forces = outputs(model, close)["forces"]
    assert forces[0, 0] < -100 and forces[1, 0] > 100


@pytest.mark.parametrize(
    "zbl",
    [pytest.param(STOCK, id="swapped"), pytest.param(OURS, id="named", marks=pytest.mark.slow)],
)
def test_training_with_compile_mode_traces(zbl):
    """What compile_mode: compile does, without the minutes that Inductor takes."""
    code = """
        import json, sys, torch
        sys.path.insert(0, sys.argv[1])
        import fastmlip
        from nequip_cases import build, force_loss_gradients, nequip_state, relative_error
        from nequip_cases import structures
        zbl = json.loads(sys.argv[2])
        with nequip_state():
            frame = structures()["batch"]  # of two frames; a single one runs eagerly
            model = build("tiny", "float64", compile_mode="compile", pair_potential=zbl)
            fastmlip.accelerate(model)
            got = force_loss_gradients(model, frame)
            assert model._compiled_cache[0], "nothing was traced"
            zbl["_target_"] = "nequip.nn.pair_potential.ZBL"
            want = force_loss_gradients(build("tiny", "float64", pair_potential=zbl), frame)
            print(max(relative_error(got[key], want[key]) for key in want))
    """
    printed = run_python(
        code, str(Path(__file__).parent), json.dumps(zbl), TORCH_COMPILE_DISABLE="1"
    )
    assert float(printed.split()[-1]) <= 1e-11

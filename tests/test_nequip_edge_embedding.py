"""NequIP's and Allegro's edge embeddings swapped: the same fields, numbers, gradients, state."""

import warnings

import pytest
import torch
from nequip_cases import (
    COMMON,
    build,
    force_loss_gradients,
    outputs,
    relative_error,
    structures,
)

import fastmlip

pytestmark = pytest.mark.usefixtures("nequip_state")

# in float32 either model is off by up to 6e-7 from its own float64 form
BOUND = {"float64": 1e-12, "float32": 3e-6}
OPTIONS = {
    "plain": {},
    "trained roots": {"bessel_trainable": True, "num_bessels": 5},
    "cutoffs of pairs": {"per_edge_type_cutoff": {"Na": 3.0, "Cl": {"O": 2.5}}},
    "power": {"polynomial_cutoff_p": 12},
}
PAIRS = {"per_edge_type_cutoff": OPTIONS["cutoffs of pairs"]["per_edge_type_cutoff"]}
CHAIN = [f"model.func.{name}" for name in ("spharm", "edge_norm", "bessel_encode", "factor")]


def allegro(model_dtype, **more):
    AllegroModel = pytest.importorskip("allegro.model").AllegroModel

    radial = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "bessel_trainable": True}
    kwargs = {
        "radial_chemical_embed": radial, "l_max": 2, "parity": True, "num_layers": 1,
        "num_scalar_features": 8, "num_tensor_features": 4, "allegro_mlp_hidden_layers_width": 8,
        "allegro_mlp_hidden_layers_depth": 1, "readout_mlp_hidden_layers_width": 8,
        "readout_mlp_hidden_layers_depth": 1,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AllegroModel(**{**COMMON, **kwargs, "model_dtype": model_dtype, **more}).eval()


def embeddings_only(model):
    """``accelerate`` with all else left as it is, so that small differences are seen."""
    from fastmlip.integrations import swap
    from fastmlip.integrations.nequip import SWAPS
    from fastmlip.integrations.nequip.edge_embedding import PARTS

    embeddings = ("SphericalHarmonics", *PARTS)
    keep = {name: SWAPS.pop(name) for name in list(SWAPS) if name not in embeddings}
    try:
        # without calls that stock has not had: TorchScript compiles anew after some
        return swap.accelerate(model, self_check=False)
    finally:
        SWAPS.update(keep)


def same(stock, fast, bound):
    assert list(stock.state_dict()) == list(fast.state_dict())
    for a, b in zip(stock.state_dict().values(), fast.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    frames = structures()
    for name in ("batch", "lone atom"):
        want, got = outputs(stock, frames[name]), outputs(fast, frames[name])
        sizes = want["atomic_energy"].abs().sum()
        for key, reference in want.items():
            scale = sizes if key == "total_energy" else None
            assert relative_error(got[key], reference, scale) <= bound, (name, key)
        want = force_loss_gradients(stock, frames[name])
        got = force_loss_gradients(fast, frames[name])
        for key, reference in want.items():
            assert relative_error(got[key], reference) <= bound, (name, key)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("option", OPTIONS)
def test_nequip(option, dtype):
    stock, fast = (build("tiny", dtype, **OPTIONS[option]) for _ in range(2))
    embeddings_only(fast)
    same(stock, fast, BOUND[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("preset", ["S", "M", "L"])
def test_nequip_presets(preset, dtype):
    stock, fast = build(preset, dtype), embeddings_only(build(preset, dtype))
    same(stock, fast, 10 * BOUND[dtype])


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("options", [{}, PAIRS], ids=["plain", "cutoffs of pairs"])
def test_allegro(dtype, options):
    stock, fast = allegro(dtype, **options), fastmlip.accelerate(allegro(dtype, **options))
    swapped = {row.path.split(".")[-1] for row in fastmlip.summary(fast) if row.status == "swapped"}
    assert {"edge_norm", "bessel_encode", "sh"} <= swapped
    same(stock, fast, BOUND[dtype])


def test_zbl_finds_lengths_and_cutoffs():
    zbl = {
        "_target_": "nequip.nn.pair_potential.ZBL", "units": "metal",
        "chemical_species": ["Na", "Cl", "O"],
    }  # fmt: skip
    stock, fast = (build("tiny", "float64", pair_potential=zbl, **PAIRS) for _ in range(2))
    same(stock, embeddings_only(fast), 1e-12)


@pytest.mark.parametrize("make", [allegro, lambda *a, **k: build("tiny", *a, **k)])
@pytest.mark.parametrize("dtype", BOUND)
def test_every_field_of_the_data_is_the_same(make, dtype):
    data = structures()["batch"]
    with_pairs = {**PAIRS}
    want = make(dtype, **with_pairs)(dict(data))
    got = fastmlip.accelerate(make(dtype, **with_pairs))(dict(data))
    assert set(want) == set(got)
    for name, reference in want.items():
        value = got[name]
        assert value.dtype == reference.dtype and value.shape == reference.shape, name
        if reference.is_floating_point():
            assert relative_error(value.detach(), reference.detach()) <= 2 * BOUND[dtype], name
        else:
            assert torch.equal(value, reference), name


def test_the_fused_operator_is_what_runs(monkeypatch):
    calls = []
    kernel = fastmlip.ops.edge_embedding
    monkeypatch.setattr(
        fastmlip.ops, "edge_embedding", lambda *a, **k: calls.append(k) or kernel(*a, **k)
    )
    frame = structures()["own images"]
    outputs(fastmlip.accelerate(build("tiny", "float64"), self_check=False), frame)
    assert [call["l_max"] for call in calls] == [1]
    outputs(fastmlip.accelerate(allegro("float64"), self_check=False), frame)
    assert [call["l_max"] for call in calls] == [1, -1, 2]


def test_summary_names_the_chain():
    model = build("tiny", "float64")
    for status in ("ready", "swapped"):
        rows = [row for row in fastmlip.summary(model) if row.path in CHAIN]
        assert [row.path for row in rows] == CHAIN and {row.status for row in rows} == {status}
        fastmlip.accelerate(model)


def test_what_is_left_alone_is_said():
    model = build("tiny", "float64", polynomial_cutoff_p=6.5)
    frame = structures()["bulk"]
    want = outputs(model, frame)
    with pytest.warns(UserWarning, match="bessel_encode: the power of its cutoff is 6.5, not an"):
        fastmlip.accelerate(model)
    rows = {row.path: row.status for row in fastmlip.summary(model)}
    assert rows["model.func.bessel_encode"] == "kept"
    assert rows["model.func.spharm.sh"] == "swapped"
    assert relative_error(outputs(model, frame)["forces"], want["forces"]) < 1e-12


def test_harmonics_of_some_degrees_only_stay():
    from nequip.nn.embedding import SphericalHarmonicEdgeAttrs

    module = SphericalHarmonicEdgeAttrs("1x0e+1x2e")
    with pytest.raises(ValueError, match=r"its degrees are \[0, 2\], not 0 to 2"):
        fastmlip.accelerate(module)


def test_roots_are_trained_and_loaded():
    fast = fastmlip.accelerate(build("tiny", "float64", bessel_trainable=True))
    name = "model.func.bessel_encode.bessel_weights"
    assert name in dict(fast.named_parameters())
    other = build("tiny", "float64", bessel_trainable=True)
    with torch.no_grad():
        dict(other.named_parameters())[name].mul_(1.01)
    fast.load_state_dict(other.state_dict())
    frame = structures()["bulk"]
    assert relative_error(outputs(fast, frame)["forces"], outputs(other, frame)["forces"]) < 1e-12
    gradients = force_loss_gradients(fast, frame)[name]
    assert gradients.shape == (1, 8) and (gradients != 0).all()

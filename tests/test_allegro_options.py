"""Options of Allegro's models, and derivatives beyond a training step, against the same models
without fastmlip."""

import copy
import warnings

import pytest
import torch
from nequip_cases import COMMON, TYPE_NAMES, force_loss_gradients, rattled, structures, to_data

import fastmlip

pytest.importorskip("allegro")
from test_allegro import BOUND, SMALL, swapped

pytestmark = pytest.mark.usefixtures("nequip_state")

ZBL = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": TYPE_NAMES}
SPLINE = {"_target_": "allegro.nn.TwoBodySplineScalarEmbed", "num_splines": 6, "spline_span": 4}
TRAINED = {"per_type_energy_scales_trainable": True, "per_type_energy_shifts_trainable": True}
SINGLE = {"type_names": ["Cu"], "per_type_energy_scales": 1.3, "per_type_energy_shifts": -0.4}
OPTIONS = {
    "plain": {},
    "l4": {"l_max": 4, "num_tensor_features": 3},
    "l4 parity": {"l_max": 4, "parity": True, "num_tensor_features": 2},
    "l1 parity, 32 channels": {"l_max": 1, "parity": True, "num_tensor_features": 32},
    "32 channels": {"num_tensor_features": 32},
    "128 channels": {"num_tensor_features": 128},
    "zbl": {"pair_potential": ZBL},
    "zbl, splines": {"pair_potential": ZBL, "radial_chemical_embed": SPLINE},
    "trained scales and shifts": TRAINED,
    "one trained scale": {**TRAINED, "per_type_energy_scales": 1.3},
    "neither scales nor shifts": {"per_type_energy_scales": None, "per_type_energy_shifts": None},
    "one type": {**SINGLE, **TRAINED},
    "one type, zbl, parity": {
        **SINGLE, "parity": True, "num_tensor_features": 5,
        "pair_potential": {**ZBL, "chemical_species": ["Cu"]},
    },
    "one weight for all irreps": {"weight_individual_irreps": False, "parity": True},
    "plain initial weights": {"forward_normalize": False},
    "widths that differ": {
        "num_scalar_features": 12, "radial_chemical_embed_dim": 6, "num_tensor_features": 7,
        "scalar_embed_mlp_hidden_layers_depth": 2, "scalar_embed_mlp_hidden_layers_width": 9,
        "readout_mlp_hidden_layers_depth": 2, "readout_mlp_hidden_layers_width": 11,
    },
}  # fmt: skip
OUTPUTS = ("atomic_energy", "total_energy", "forces", "stress", "virial")


FAST = {"FastAllegro", "FastTensorEmbed", "FastScalarMLP"}


def pair(dtype, options, fast_modules=FAST):
    """The stock model of ``options``, in evaluation mode, and its fast form."""
    from allegro.model import AllegroModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shifts = dict(zip(TYPE_NAMES, (0.3, -0.5, 0.9), strict=True))
        kwargs = {
            **COMMON,
            "per_type_energy_shifts": shifts,
            **SMALL,
            **options,
            "model_dtype": dtype,
        }
        stock = AllegroModel(**kwargs).eval()
    fast = fastmlip.accelerate(copy.deepcopy(stock))
    assert fast_modules <= swapped(fast)
    assert list(fast.state_dict()) == list(stock.state_dict())
    return stock, fast


def frame_of(case, model):
    """A frame with the types of ``model``."""
    data = structures()[case]
    data["atom_types"] = data["atom_types"] % len(model.type_names)
    return data


def values(model, data):
    out = model(dict(data))
    return {name: out[name].detach() for name in OUTPUTS}


def assert_close(got, want, bound, of):
    """Each to the largest of its numbers, and to a thousandth of the largest of all."""
    scale = max(t.abs().max() for t in want.values())
    for key, reference in want.items():
        assert got[key].dtype == reference.dtype and got[key].shape == reference.shape, key
        size = torch.maximum(reference.abs().max(), 1e-3 * scale).item()
        error = (got[key].double() - reference.double()).abs().max().item() / (size or 1.0)
        assert error <= bound, f"{of}, {key}: {error}"


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OPTIONS)
def test_outputs_and_training_gradients(name, dtype):
    """In both modes: a model in training mode keeps the graph of its forces."""
    stock, fast = pair(dtype, OPTIONS[name])
    assert (values(stock, frame_of("batch", stock))["forces"] != 0).all()
    for case in ("batch", "lone atom"):  # of a lone atom all but the shift of its type is zero
        data = frame_of(case, stock)
        for mode in (False, True):
            want, got = (values(model.train(mode), data) for model in (stock, fast))
            assert_close(got, want, BOUND[dtype], f"{case}, training {mode}")
        want, got = (force_loss_gradients(model, data) for model in (stock, fast))
        assert_close(got, want, BOUND[dtype], f"{case}, parameter gradients")


def products(model, data):
    """Of the Hessian with a vector, and of their derivative with another: gradients of gradients of
    forces in positions and parameters."""
    model.train()
    generator = torch.Generator().manual_seed(3)
    along, again = torch.randn(2, *data["pos"].shape, generator=generator, dtype=torch.float64)
    pos = data["pos"].clone().requires_grad_()
    forces = model({**data, "pos": pos})["forces"]
    (product,) = torch.autograd.grad((forces * along).sum(), pos, create_graph=True)
    names, parameters = zip(*model.named_parameters(), strict=True)
    third, *rest = torch.autograd.grad(
        (product * again).sum(), [pos, *parameters], allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    model.eval()
    return {"Hessian": product.detach()}, {"third": third}, dict(zip(names, rest, strict=True))


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-10), pytest.param("float32", 2e-5, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["plain", "l1 parity, 32 channels", "zbl, splines", "one type"])
def test_hessian_vector_products_and_their_derivatives(name, dtype, bound):
    stock, fast = pair(dtype, OPTIONS[name])
    data = frame_of("own images", stock)
    want, got = products(stock, data), products(fast, data)
    for reference, value in zip(want, got, strict=True):  # each kind has its own size
        assert any((number != 0).any() for number in reference.values())
        assert_close(value, reference, bound, dtype)


def test_a_model_whose_energies_alone_are_asked():
    """Gradients of an energy by hand, without NequIP's forces."""
    stock, fast = pair("float64", {"do_derivatives": False})
    data = to_data(rattled())
    found = []
    for model in (stock, fast):
        pos = data["pos"].clone().requires_grad_()
        energy = model({**data, "pos": pos})["total_energy"].sum()
        found.append({"energy": energy.detach(), "slope": torch.autograd.grad(energy, pos)[0]})
    assert_close(found[1], found[0], 1e-10, "energies")


@pytest.mark.parametrize("where", ["scalar_embed", "allegro", "readout"])
def test_networks_without_activations_stay_as_they_are(where):
    """What is not swapped says why, and the rest of the model is right around it."""
    options = {f"{where}_mlp_nonlinearity": None}
    with pytest.warns(UserWarning, match="is not layers with activations between them"):
        stock, fast = pair("float64", options, set())
    data = structures()["batch"]
    assert_close(values(fast, data), values(stock, data), 1e-10, where)
    want, got = (force_loss_gradients(model, data) for model in (stock, fast))
    assert_close(got, want, 1e-10, where)

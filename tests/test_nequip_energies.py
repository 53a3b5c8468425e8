"""Scales and shifts of a model's config: lists, and errors that name the types."""

import math

import pytest
import torch
from nequip.model import modify

import fastmlip
from fastmlip.integrations.nequip.energies import by_type_name

pytestmark = pytest.mark.usefixtures("nequip_state")

NAMES = ["C", "H", "O"]
SETTINGS = {
    "nequip": {
        "_target_": "nequip.model.NequIPGNNModel", "num_layers": 1, "l_max": 1, "num_features": 2,
        "radial_mlp_width": 4,
    },
    "allegro": {
        "_target_": "allegro.model.AllegroModel", "num_layers": 1, "l_max": 1,
        "num_scalar_features": 4, "num_tensor_features": 2,
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed"},
    },
}  # fmt: skip


def build(host, modifier="enable_FastMLIP", **energies):
    settings = {
        **SETTINGS[host], "seed": 1, "model_dtype": "float64", "type_names": NAMES, "r_max": 3.0,
        "avg_num_neighbors": 5.0, **energies,
    }  # fmt: skip
    given = repr(settings)
    try:
        return modify(model=settings, modifiers=[{"modifier": modifier}] if modifier else [])
    finally:
        assert repr(settings) == given


@pytest.mark.parametrize("host", SETTINGS)
def test_lists_are_in_the_order_of_type_names(host):
    model = build(
        host, per_type_energy_scales=[1.0, 2.0, 3.0], per_type_energy_shifts=[-4.0, -5, 0]
    )
    (module,) = (m for m in model.modules() if type(m).__name__ == "FastPerTypeScaleShift")
    assert module.scales.flatten().tolist() == [1.0, 2.0, 3.0]
    assert module.shifts.flatten().tolist() == [-4.0, -5.0, 0.0]
    data = {"atomic_energy": torch.ones(2, 1), "atom_types": torch.tensor([2, 1])}
    assert module(data)["atomic_energy"].flatten().tolist() == [3.0, -3.0]


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ([1.0, 2.0], r"expected 3 values, one for each of the type names .* no value for \['O'\]"),
        ({"C": 1.0, "H": 2.0}, r"missing: \['O'\]"),
        ({"C": 1.0, "H": 2.0, "O": 3.0, "N": 4.0}, r"unknown: \['N'\]"),
        ([1.0, math.nan, 2.0], "got nan for H"),
        ({"C": 1.0, "H": 2.0, "O": math.inf}, "got inf for O"),
    ],
)
def test_what_does_not_fit_is_named(shifts, message):
    with pytest.raises(ValueError, match="per_type_energy_shifts.*" + message):
        build("nequip", per_type_energy_shifts=shifts)


def test_nested_configs_and_single_numbers():
    inner = {"type_names": NAMES, "per_type_energy_scales": 2.0, "per_type_energy_shifts": None}
    assert by_type_name({"model": {"model": inner}}) == {"model": {"model": inner}}
    listed = {"model": {**inner, "per_type_energy_shifts": [1, 2, 3]}}
    assert by_type_name(listed)["model"]["per_type_energy_shifts"] == {"C": 1.0, "H": 2.0, "O": 3.0}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_with_numbers_that_are_not_finite_is_refused_and_left_as_it_was(value):
    model = build("nequip", modifier=[], per_type_energy_shifts={"C": 1.0, "H": 2.0, "O": value})
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=f"shifts: expected a finite value, got {value} for O"):
        fastmlip.accelerate(model)
    assert [type(m) for m in model.modules()] == kinds


def test_configs_without_fastmlip_are_left_alone():
    with pytest.raises((RuntimeError, ValueError)):  # NequIP's own
        build("nequip", modifier="no_such_modifier", per_type_energy_shifts=[1.0, 2.0, 3.0])

"""fastmlip's PerTypeScaleShift against NequIP's: alone, in models, through modifiers and YAML."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from nequip.data import AtomicDataDict
from nequip.model import modify
from nequip.model.modify_utils import get_all_modifiers
from nequip.nn import PerTypeScaleShift as Stock
from nequip.nn import SequentialGraphNetwork
from nequip_cases import TYPE_NAMES, build, force_loss_gradients, outputs, structures
from omegaconf import OmegaConf

import fastmlip
from fastmlip.integrations.nequip.per_type_scale_shift import FastPerTypeScaleShift
from fastmlip.nn import PerTypeScaleShift
from fastmlip.testing import assert_close

pytestmark = pytest.mark.usefixtures("nequip_state")

BY_NAME = dict(zip(TYPE_NAMES, (1.5, -0.3, 2.25), strict=True))
ENERGIES = dict(zip(TYPE_NAMES, (-1234.5, 0.0, 17.0), strict=True))
FIELD = "atomic_energy"
SETTINGS = {
    "per type": {"scales": BY_NAME, "shifts": ENERGIES},
    "one value": {"scales": 1.5, "shifts": -7},
    "one scale, shifts of types": {"scales": 0.5, "shifts": ENERGIES},
    "scales only": {"scales": BY_NAME},
    "shifts only": {"shifts": ENERGIES},
    "neither": {},
    "trainable": {"scales": BY_NAME, "shifts": ENERGIES, "scales_trainable": True,
                  "shifts_trainable": True},
    "one trainable value": {"scales": 2.0, "shifts": 1.0, "scales_trainable": True},
}  # fmt: skip


def stock(**settings):
    return Stock(TYPE_NAMES, FIELD, irreps_in={FIELD: "1x0e"}, **settings)


def ours(**settings):
    return PerTypeScaleShift(TYPE_NAMES, FIELD, irreps_in={FIELD: "1x0e"}, **settings)


def swapped(**settings):
    return fastmlip.accelerate(torch.nn.Sequential(stock(**settings)))[0]


def run(module, dtype, types_shape=(-1,)):
    """Output, gradients and second derivatives, of energies and parameters."""
    random = torch.Generator().manual_seed(2)
    x = torch.randn(29, 1, generator=random).to(dtype).requires_grad_()
    types = torch.randint(3, (33,), generator=random).reshape(types_shape)  # 4 ghost atoms
    out = module({FIELD: x, "atom_types": types})[FIELD]
    leaves = [x, *(p for p in module.parameters() if p.numel())]
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(d.square().sum() for d in first), leaves)
    return [out, *first, *second]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [ours, swapped])
@pytest.mark.parametrize("name", SETTINGS)
def test_numbers_are_those_of_stock(name, make, dtype):
    old, new = stock(**SETTINGS[name]), make(**SETTINGS[name])
    for shape in ((-1,), (-1, 1)):
        want, got = run(old, dtype, shape), run(new, dtype, shape)
        assert got[0].dtype == torch.float64
        for actual, expected in zip(got, want, strict=True):
            assert actual.dtype == expected.dtype
            assert_close(actual, expected, order=1)


@pytest.mark.parametrize("make", [ours, swapped])
@pytest.mark.parametrize("name", SETTINGS)
def test_state_dicts_are_those_of_stock(name, make):
    old, new = stock(**SETTINGS[name]), make(**SETTINGS[name])
    assert list(old.state_dict()) == list(new.state_dict())
    for key, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[key])
    assert [n for n, _ in old.named_parameters()] == [n for n, _ in new.named_parameters()]
    new.load_state_dict(old.state_dict())
    assert new.irreps_out == old.irreps_out and new.irreps_in == old.irreps_in


def test_the_swap_keeps_the_parameters_themselves():
    old = stock(**SETTINGS["trainable"])
    model = torch.nn.Sequential(old)
    before = list(model.parameters())
    fastmlip.accelerate(model)
    assert isinstance(model[0], FastPerTypeScaleShift) and isinstance(model[0], Stock)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert [row.status for row in fastmlip.summary(model)] == ["swapped"]


@pytest.mark.parametrize("way", ["deepcopy", "torch.save"])
def test_copies_work(way):
    model = torch.nn.Sequential(swapped(**SETTINGS["trainable"]))
    if way == "deepcopy":
        copied = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert type(copied[0]) is type(model[0])
    assert copied[0].scales is not model[0].scales
    for got, want in zip(run(copied[0], torch.float32), run(model[0], torch.float32), strict=True):
        assert torch.equal(got, want)


# ---------------------------------------------------------------- what one may write


LIST = list(BY_NAME.values())


@pytest.mark.parametrize("values", [LIST, tuple(LIST), np.array(LIST), BY_NAME])
def test_lists_stand_in_the_order_of_the_type_names(values):
    module = ours(scales=values, shifts=values)
    want = stock(scales=BY_NAME, shifts=BY_NAME)
    assert torch.equal(module.scales, want.scales) and torch.equal(module.shifts, want.shifts)


BAD = {
    "short list": (
        {"shifts": [1.0, 2.0]},
        ValueError,
        r"shifts: expected 3 values.*2: no value for \['O'\]",
    ),
    "long list": ({"scales": [1.0] * 4}, ValueError, r"scales: .*got 4: no type name for \[1.0\]"),
    "unknown name": (
        {"shifts": {**BY_NAME, "Xx": 1.0}},
        ValueError,
        r"shifts: .*unknown: \['Xx'\], missing: \[\]",
    ),
    "missing name": ({"shifts": {"Na": 1.0, "O": 1.0}}, ValueError, r"shifts: .*missing: \['Cl'\]"),
    "nan": (
        {"shifts": {**BY_NAME, "Cl": float("nan")}},
        ValueError,
        "shifts: expected a finite value, got nan for Cl",
    ),
    "inf": (
        {"scales": [1.0, 2.0, float("inf")]},
        ValueError,
        "scales: expected a finite value, got inf for O",
    ),
    "one nan": ({"scales": float("nan")}, ValueError, "scales: .*got nan for all types"),
    "text": ({"scales": "forces_rms"}, TypeError, "scales: expected a number.*'forces_rms'"),
    "None inside": ({"scales": {**BY_NAME, "O": None}}, TypeError, "scales: .*None for O"),
    "bool": ({"shifts": True}, TypeError, "shifts: .*True"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_by_the_name_of_the_type(name):
    settings, error, message = BAD[name]
    with pytest.raises(error, match=message):
        ours(**settings)


def test_bad_names_and_irreps_are_refused():
    with pytest.raises(ValueError, match="type_names: expected names that differ"):
        PerTypeScaleShift(["H", "H"], FIELD)
    with pytest.raises(ValueError, match=r"irreps_in: expected 1x0e.*2x0e"):
        PerTypeScaleShift(["H"], FIELD, irreps_in={FIELD: "2x0e"})


def test_one_value_stays_one_unless_it_is_trained():
    module = ours(scales=2.0, shifts=3.0, shifts_trainable=True)
    assert module.scales.shape == (1, 1) and module.shifts.shape == (3, 1)
    assert [name for name, _ in module.named_parameters()] == ["shifts"]
    assert "all types: 2.000000" in repr(module) and "Cl: 3.000000" in repr(module)


def test_as_a_target_in_yaml():
    config = OmegaConf.create(
        """
        _target_: fastmlip.nn.PerTypeScaleShift
        type_names: [Na, Cl, O]
        field: atomic_energy
        scales: [1.5, -0.3, 2.25]
        shifts: {Na: -1234.5, Cl: 0.0, O: 17.0}
        """
    )
    module = instantiate(config)
    want = stock(**SETTINGS["per type"])
    for got, expected in zip(run(module, torch.float32), run(want, torch.float32), strict=True):
        assert_close(got, expected, order=1)
    chained = SequentialGraphNetwork({"first": stock(scales=2.0), "second": module})
    assert FIELD in chained.irreps_out


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("trainable", [False, True])
def test_models_match_stock(dtype, trainable):
    more = {
        "per_type_energy_shifts": ENERGIES,
        "per_type_energy_scales_trainable": trainable,
        "per_type_energy_shifts_trainable": trainable,
    }
    old = build("tiny", dtype, **more)
    new = modify(build("tiny", dtype, **more), [{"modifier": "enable_FastMLIP"}])
    assert type(new.model.func.per_type_energy_scale_shift).__name__ == "FastPerTypeScaleShift"
    bound = {"float64": 1e-12, "float32": 1e-5}[dtype]
    frame = structures()["batch"]
    for compare in (outputs, force_loss_gradients):
        want, got = compare(old, frame), compare(new, frame)
        for name, value in want.items():
            assert (got[name] - value).abs().max() <= bound * value.abs().max(), name


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_isolated_atoms_have_the_energies_of_the_shifts_to_the_bit(dtype):
    model = fastmlip.accelerate(build("tiny", dtype, per_type_energy_shifts=ENERGIES))
    frames = []
    for number in range(3):
        frame = structures()["lone atom"]
        frame["atom_types"] = torch.tensor([number])
        frames.append(frame)
    out = model(AtomicDataDict.batched_from_list(frames))
    want = torch.tensor(list(ENERGIES.values()), dtype=torch.float64)
    assert torch.equal(out["atomic_energy"].flatten(), want)
    assert torch.equal(out["total_energy"].flatten(), want)


@pytest.mark.slow
def test_compiled_training_has_the_operator(monkeypatch):
    import functools

    compile_with = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("nequip.nn.compile.torch.compile", compile_with)
    more = {"per_type_energy_shifts_trainable": True, "per_type_energy_scales_trainable": True}
    more["per_type_energy_shifts"] = ENERGIES
    old = build("tiny", "float64", **more)
    new = fastmlip.accelerate(build("tiny", "float64", compile_mode="compile", **more))
    frame = structures()["batch"]
    want, got = force_loss_gradients(old, frame), force_loss_gradients(new, frame)
    for name, value in want.items():
        assert (got[name] - value).abs().max() <= 1e-10 * value.abs().max(), name
    graphs = [graph.code for graph, _ in new._compiled_cache[0].values()]
    assert graphs and all("fastmlip.scale_shift" in code for code in graphs)


# ---------------------------------------------------------------- modify_PerTypeScaleShift

ENABLE = {"modifier": "enable_FastMLIP"}
CHANGE = {"modifier": "modify_PerTypeScaleShift", "shifts": {"Cl": 5.0}, "scales": 3.0,
          "shifts_trainable": True}  # fmt: skip


def values(model):
    module = model.model.func.per_type_energy_scale_shift
    return module, [module.scales.flatten().tolist(), module.shifts.flatten().tolist()]


@pytest.mark.parametrize("together", [False, True])
def test_nequips_modifier_keeps_working(together):
    old = modify(build("tiny", "float64"), [CHANGE])
    new = build("tiny", "float64")
    for modifiers in [[ENABLE, CHANGE, ENABLE]] if together else [[ENABLE], [CHANGE]]:
        new = modify(new, modifiers)
    module, got = values(new)
    assert got == values(old)[1] == [[3.0] * 3, [0.0, 5.0, 0.0]]
    assert isinstance(module, FastPerTypeScaleShift)
    assert isinstance(module.shifts, torch.nn.Parameter) and not module.scales.requires_grad
    frame = structures()["bulk"]
    for name, value in outputs(old, frame).items():
        assert (outputs(new, frame)[name] - value).abs().max() <= 1e-12 * value.abs().max()


def test_models_without_scales_or_shifts_can_be_modified():
    """Where stock's modifier raises."""
    none = {"per_type_energy_scales": None, "per_type_energy_shifts": None}
    model = modify(build("tiny", "float64", **none), [ENABLE])
    modify(model, [{"modifier": "modify_PerTypeScaleShift", "shifts": {"Cl": 5.0}}])
    module, got = values(model)
    assert got == [[], [0.0, 5.0, 0.0]] and not module.has_scales
    with pytest.raises(ValueError, match=r"shifts: .*unknown: \['Xx'\]"):
        modify(model, [{"modifier": "modify_PerTypeScaleShift", "shifts": {"Xx": 5.0}}])


@pytest.mark.parametrize("own", [False, True], ids=["stock kept", "all swapped"])
def test_modifiers_in_one_list_keep_the_fused_module(own):
    """NequIP looks for modifiers once, before the first of the list has swapped anything."""
    old, new = build("tiny", "float64"), build("tiny", "float64")
    if not own:
        host = next(m for m in new.modules() if type(m).__name__ == "PerTypeScaleShift")
        host.register_buffer("shifts", host.shifts.float())  # not of a dtype that is swapped
    change = {"modifier": "modify_PerTypeScaleShift", "shifts": {"Cl": 5.0}}
    modify(old, [change])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modify(new, [ENABLE, change])
    module, got = values(new)
    assert got == values(old)[1] and isinstance(module, FastPerTypeScaleShift) == own
    frame = structures()["bulk"]
    for name, value in outputs(old, frame).items():
        assert (outputs(new, frame)[name] - value).abs().max() <= 1e-12 * value.abs().max()


def test_modules_from_yaml_can_be_modified():
    model = SequentialGraphNetwork({"only": ours(scales=2.0, shifts=[1.0, 2.0, 3.0])})
    get_all_modifiers(model)["modify_PerTypeScaleShift"](model, shifts={"O": 9.0})
    assert type(model.only) is PerTypeScaleShift
    assert model.only.shifts.flatten().tolist() == [1.0, 2.0, 9.0]
    assert model.only.scales.flatten().tolist() == [2.0] * 3
    rows = fastmlip.summary(torch.nn.Sequential(model))
    assert [row.status for row in rows] == ["swapped"]


UNKNOWN = {
    "of another shape": lambda m: m.register_buffer("shifts", torch.zeros(2, 1).double()),
    "of another dtype": lambda m: m.register_buffer("shifts", m.shifts.float()),
    "of another version": lambda m: delattr(m, "out_dtype"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_modules_that_differ_are_left_and_said(what):
    old = stock(**SETTINGS["per type"])
    UNKNOWN[what](old)
    model = torch.nn.Sequential(old)
    with pytest.raises(ValueError, match=r"shape|float64|out_dtype"):
        fastmlip.accelerate(model)
    assert model[0] is old

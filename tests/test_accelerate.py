"""What accelerate() and summary() promise: in place, same state dict, never silent."""

import copy
import io

import pytest
import torch
from nequip.model.modify_utils import get_all_modifiers, modify
from nequip.nn.model_modifier_utils import (
    get_model_modifier_supported_compile_modes,
    get_model_modifier_unsupported_devices,
    is_persistent_model_modifier,
    is_private_model_modifier,
)
from nequip_cases import build, outputs, relative_error, structures

import fastmlip
from fastmlip.ops.tensor_product_conv import reference

pytestmark = pytest.mark.usefixtures("nequip_state")


@pytest.fixture(scope="module")
def frame():
    return structures()["own images"]


def scatters(model):
    return [m for m in model.modules() if type(m).__name__.endswith("TensorProductScatter")]


def energy_and_forces_are_the_same(model, other, frame, bound=1e-12):
    want, got = outputs(model, frame), outputs(other, frame)
    return all(relative_error(got[key], want[key]) <= bound for key in ("atomic_energy", "forces"))


def test_it_works_in_place_and_twice():
    model = build("tiny", "float64")
    assert fastmlip.accelerate(model) is model
    once = scatters(model)
    assert {type(m).__name__ for m in once} == {"FastTensorProductScatter"}
    assert fastmlip.accelerate(model) is model
    assert all(a is b for a, b in zip(once, scatters(model), strict=True))


@pytest.mark.parametrize("config", ["tiny", "l3 parity"])
def test_state_dicts_are_identical_and_load_both_ways(config, frame):
    stock, fast = build(config, "float64"), build(config, "float64")
    before = {key: value.clone() for key, value in fast.state_dict().items()}
    after = fastmlip.accelerate(fast).state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    other = build(config, "float64", seed=99)
    fast.load_state_dict(other.state_dict())
    assert energy_and_forces_are_the_same(other, fast, frame)
    assert not energy_and_forces_are_the_same(stock, fast, frame)
    stock.load_state_dict(fast.state_dict())
    assert energy_and_forces_are_the_same(stock, fast, frame)


def test_the_host_finds_its_attributes():
    stock, fast = build("l2 5-2-7", "float32"), fastmlip.accelerate(build("l2 5-2-7", "float32"))
    for old, new in zip(scatters(stock), scatters(fast), strict=True):
        for name in ("feature_irreps_in", "irreps_edge_attr", "irreps_mid", "instructions"):
            assert getattr(new, name) == getattr(old, name)
        assert new.model_dtype == torch.float32
        assert new.tp.weight_numel == old.tp.weight_numel
    assert fast.metadata["nequip_custom_ops_libs"] == "fastmlip"
    assert "nequip_custom_ops_libs" not in stock.metadata


@pytest.mark.parametrize("way", ["deepcopy", "torch.save"])
def test_copies_work(way, frame):
    fast = fastmlip.accelerate(build("l2 5-2-7", "float64"))
    if way == "deepcopy":
        copied = copy.deepcopy(fast)
    else:
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert energy_and_forces_are_the_same(fast, copied, frame, bound=0.0)
    assert {type(m).__name__ for m in scatters(copied)} == {"FastTensorProductScatter"}


def test_the_layer_follows_double_and_float():
    layer = scatters(fastmlip.accelerate(build("l3 parity", "float32")))[1]
    generator = torch.Generator().manual_seed(0)

    def operands(dtype):
        tp = layer.tp
        sizes = ((5, tp.irreps_in1.dim), (8, tp.irreps_in2.dim), (8, tp.weight_numel))
        return [
            torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes
        ]

    dst, src = torch.randint(5, (2, 8), generator=generator)
    inputs = operands(torch.float64)
    exact = layer.double()(*inputs, dst, src)
    assert exact.dtype == torch.float64
    assert relative_error(exact, reference(*inputs, dst, src, layer.conv.problem)) < 1e-12
    rounded = layer.float()(*(value.float() for value in inputs), dst, src)
    assert relative_error(rounded, exact) < 1e-5


def test_what_compile_mode_compiled_is_dropped():
    model = build("tiny", "float64", compile_mode="compile")
    model._compiled_cache[0]["signature"] = ("graph of the stock model", ())
    model.weight_names = model.buffer_names = ["some"]
    fastmlip.accelerate(model)
    assert model._compiled_cache == ({},)
    assert model.weight_names is None and model.buffer_names is None


def test_the_modifier_is_offered_and_says_what_it_is():
    modifiers = get_all_modifiers(build("tiny", "float64"))
    modifier = modifiers["enable_FastMLIP"]
    assert "enable_OpenEquivariance" in modifiers
    assert not is_persistent_model_modifier(modifier) and not is_private_model_modifier(modifier)
    assert get_model_modifier_unsupported_devices(modifier) == []
    assert get_model_modifier_supported_compile_modes(modifier) == [
        "eager", "compile", "aotinductor",
    ]  # fmt: skip
    assert modifier.__doc__.strip()
    assert "enable_FastMLIP" not in get_all_modifiers(torch.nn.Linear(1, 1))


def test_modify_applies_it_with_others_and_repeatedly():
    one = {"modifier": "enable_FastMLIP"}
    shift = {"modifier": "modify_PerTypeScaleShift", "shifts": {"Na": 1.0, "Cl": 2.0, "O": 3.0}}
    model = modify(build("tiny", "float64"), [one, shift, one])
    modify(model, [one])
    assert {type(m).__name__ for m in scatters(model)} == {"FastTensorProductScatter"}
    plain = modify(build("tiny", "float64"), [shift])
    data = structures()["bulk"]
    assert energy_and_forces_are_the_same(plain, model, data)


def test_nothing_to_accelerate_is_an_error():
    with pytest.raises(ValueError, match="nothing to accelerate in Linear"):
        fastmlip.accelerate(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got str"):
        fastmlip.accelerate("model")
    layer = scatters(build("tiny", "float64"))[0]
    with pytest.raises(ValueError, match="pass the model that holds it"):
        fastmlip.accelerate(layer)
    fastmlip.accelerate(torch.nn.Sequential(layer))


def unsupported(model, index, how):
    layer = scatters(model)[index]
    if how == "another kernel":
        layer.__class__ = type("OtherTensorProductScatter", (type(layer),), {})
    elif how == "shared weights":
        layer.tp.shared_weights = True
    elif how == "mode":
        layer.tp.instructions[0] = layer.tp.instructions[0]._replace(connection_mode="uvw")
    elif how == "other signs":
        for name, buffer in layer.tp.named_buffers():
            if "_w3j_" in name:
                buffer.neg_()
    else:
        del layer.irreps_mid
    return layer


REASONS = {
    "another kernel": "OtherTensorProductScatter is another accelerated kernel already",
    "shared weights": "its weights are shared between edges",
    "mode": "connection mode 'uvw' is not supported",
    "other signs": "Wigner 3j symbols .* differ",
    "unknown version": "without irreps_mid",
}


@pytest.mark.parametrize("how", REASONS)
def test_what_is_left_alone_is_said(how, capsys):
    model = build("l2 5-2-7", "float64")
    kept = unsupported(model, 1, how)
    with pytest.warns(UserWarning, match=f"layer1_convnet.conv.tp_scatter: .*{REASONS[how]}"):
        fastmlip.accelerate(model)
    assert scatters(model)[1] is kept
    rows = [row for row in fastmlip.summary(model) if row.path.endswith("tp_scatter")]
    assert [row.status for row in rows] == ["swapped", "kept", "swapped"]
    assert rows[1].path == "model.func.layer1_convnet.conv.tp_scatter"
    printed = capsys.readouterr().out
    assert "swapped" in printed and "kept" in printed


def test_only_refusals_are_an_error():
    model = build("tiny", "float64")
    for index in range(2):
        unsupported(model, index, "shared weights")
    del model.model.func.per_type_energy_scale_shift
    model.model.func.bessel_encode.cutoff.p = 2.5
    model.model.func.spharm.sh.normalize = False
    readout = next(m for m in model.modules() if type(m).__name__ == "ScalarMLP")
    readout.mlp_module.register_forward_hook(lambda *_: None)
    for layer in (model.model.func.layer0_convnet, model.model.func.layer1_convnet):
        layer.equivariant_nonlin.act_scalars.acts[0].f = torch.nn.functional.relu

    class ForceStressOutput(type(model.model)):
        def forward(self, data):
            return super().forward(data)

    model.model.__class__ = ForceStressOutput
    with pytest.raises(
        ValueError,
        match=r"model: ForceStressOutput of an unknown .*layer0.*shared between edges; .*l",
    ):
        fastmlip.accelerate(model)


def test_summary_cuts_nothing_in_a_narrow_pipe(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    rows = fastmlip.summary(build("tiny", "float64"))
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    paths = "".join(row[0].strip() for row in cells)
    assert paths == "".join(row.path for row in rows)


def test_summary_of_a_stock_model():
    rows = fastmlip.summary(build("tiny", "float64"))
    assert [row.status for row in rows if "TensorProduct" in row.module] == ["ready"] * 2
    assert fastmlip.summary(torch.nn.Linear(1, 1)) == []

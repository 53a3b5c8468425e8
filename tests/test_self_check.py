"""accelerate() compares energies and forces before and after, and undoes what is wrong."""

import copy
import warnings

import pytest
import torch
from nequip_cases import build, outputs, structures

import fastmlip
from fastmlip.integrations import gate, gpu, modifiers, swap
from fastmlip.integrations.nequip import force_stress, per_type_scale_shift
from fastmlip.integrations.self_check import SelfCheckError

pytestmark = pytest.mark.usefixtures("nequip_state")


def wrong_gate(monkeypatch, factor):
    right = gate.FastGate.forward
    monkeypatch.setattr(gate.FastGate, "forward", lambda self, x: factor * right(self, x))


def wrong_forces(monkeypatch, factor):
    right = force_stress.FastForceStressOutput.forward

    def forward(self, data):
        data = right(self, data)
        data["forces"] = factor * data["forces"]
        return data

    monkeypatch.setattr(force_stress.FastForceStressOutput, "forward", forward)


def wrong_shift(monkeypatch, factor):
    right = per_type_scale_shift.FastPerTypeScaleShift.forward

    def forward(self, data):
        data = right(self, data)
        data[self.out_field] = data[self.out_field] + (factor - 1)
        return data

    monkeypatch.setattr(per_type_scale_shift.FastPerTypeScaleShift, "forward", forward)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("fault", "off"),
    [(wrong_gate, "forces"), (wrong_forces, "forces"), (wrong_shift, "atomic_energy")],
)
def test_a_wrong_module_is_found_and_undone(monkeypatch, fault, off, dtype):
    model = build("tiny", dtype)
    model.train()
    model.model.func.layer0_convnet.eval()  # the modes of modules may differ
    modes = [m.training for m in model.modules()]
    classes = [(path, type(m)) for path, m in model.named_modules()]
    keys = list(model.state_dict())
    buffers = [name for name, _ in model.named_buffers()]
    frame = structures()["own images"]
    was = outputs(model.eval(), frame)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    fault(monkeypatch, 1.001)
    with pytest.raises(SelfCheckError, match=f"so it was left as it was: off are .*{off} by"):
        fastmlip.accelerate(model)
    assert [(path, type(m)) for path, m in model.named_modules()] == classes
    assert [m.training for m in model.modules()] == modes
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_buffers()] == buffers
    assert all(row.status == "ready" for row in swap.report(model))
    now = outputs(model.eval(), frame)
    assert all(torch.equal(was[key], now[key]) for key in was)
    fastmlip.accelerate(model, self_check=False)


def test_modules_keep_their_modes():
    model = build("tiny", "float64").train()
    model.model.func.layer0_convnet.eval()
    fastmlip.accelerate(model)
    assert not model.model.func.layer0_convnet.conv.training
    assert not model.model.func.layer0_convnet.conv.linear_1.training
    assert model.model.training and model.model.func.layer1_convnet.conv.linear_1.training


def test_what_a_module_raises_undoes_the_swap(monkeypatch):
    model = build("tiny", "float64")

    def replace(old, model):
        raise MemoryError

    swaps = next(host.swaps for host in swap.HOSTS if "Gate" in host.swaps)
    monkeypatch.setitem(swaps, "Gate", swaps["Gate"]._replace(make=replace))
    with pytest.raises(MemoryError):
        fastmlip.accelerate(model)
    assert all(row.status == "ready" for row in swap.report(model))
    assert not any(m.__module__.startswith("fastmlip") for m in model.modules())


@pytest.mark.parametrize("config", ["S", "l3 parity"])
@pytest.mark.parametrize("training", [False, True])
def test_a_right_model_passes_in_silence(config, training):
    model = build(config, "float32").train(training)
    random = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastmlip.accelerate(model)
    assert model.training is training
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_models_inside_others_are_checked(monkeypatch):
    wrong_gate(monkeypatch, 1.01)
    one = build("tiny", "float64")
    both = torch.nn.ModuleDict({"a": one, "b": copy.deepcopy(one)})
    with pytest.raises(SelfCheckError):
        fastmlip.accelerate(torch.nn.ModuleList([both]))
    with torch.no_grad(), pytest.raises(SelfCheckError):
        fastmlip.accelerate(one)


def test_a_model_that_wants_more_is_not_checked_and_says_so():
    model = build("tiny", "float64")

    class Charged(torch.nn.Module):
        _is_graph_module_mixin = False

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, data):
            data["charge"] + 1
            return self.inner(data)

    model.model = Charged(model.model)
    with pytest.warns(UserWarning, match="could not try the model on four made-up atoms.*charge"):
        fastmlip.accelerate(model)


# ---------------------------------------------------------------- on a GPU


def test_that_nobody_has_timed_it_on_a_gpu_is_said(monkeypatch):
    monkeypatch.setattr(swap, "is_on_gpu", lambda model: True)
    with pytest.warns(UserWarning, match="have not been timed"):
        fastmlip.accelerate(build("tiny", "float64"))
    with pytest.warns(UserWarning, match="have not been timed"):
        fastmlip.tabulate(build("tiny", "float64"), tol=1e-3)


def test_modifiers_say_it_before_the_model_is_moved(monkeypatch):
    offered = modifiers.modifiers(build("tiny", "float64"), {})
    monkeypatch.setattr(modifiers, "_say_what_runs", lambda model: None)  # it asks the GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="have not been timed"):
        offered["enable_FastMLIP"](build("tiny", "float64"))
    with pytest.warns(UserWarning, match="have not been timed"):
        offered["enable_FastMLIP_tabulated"](build("tiny", "float64"), tol=1e-3)


def test_a_model_is_known_to_be_on_a_gpu():
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = torch.nn.Linear(2, 2)
    assert not gpu.is_on_gpu(layer)
    with FakeTensorMode():
        layer.register_buffer("shift", torch.empty(2, device="cuda"))
    assert gpu.is_on_gpu(layer)


def test_modifiers_say_what_runs(caplog):
    from nequip.model import modify

    with caplog.at_level("INFO", logger="fastmlip"):
        modify(build("tiny", "float64"), [{"modifier": "enable_FastMLIP"}])
    (line,) = caplog.messages
    assert "14 modules swapped, 0 left as they were" in line
    assert "CPU tensors: cpp, " in line and "GPU tensors: " in line

"""``compile_mode: compile`` and torch.compile: the same numbers and gradients as eager stock."""

import functools

import pytest
import torch
from nequip.data import AtomicDataDict
from nequip.model import modify
from nequip_cases import (
    build,
    force_loss_gradients,
    outputs,
    rattled,
    relative_error,
    structures,
    to_data,
)

pytestmark = pytest.mark.usefixtures("nequip_state")

MODIFIER = [{"modifier": "enable_FastMLIP"}]
TRACING_ONLY = pytest.param("aot_eager", id="aot_eager")  # all of the compiler but its code
CODE_TOO = pytest.param("inductor", id="inductor", marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def no_caches():
    """A cache may hold a graph made with older derivatives of an operator."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


@pytest.mark.parametrize("backend", [TRACING_ONLY, CODE_TOO])
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_compiled_training_matches_eager_stock(backend, dtype, monkeypatch):
    compile_with = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr("nequip.nn.compile.torch.compile", compile_with)
    stock = build("tiny", dtype)
    compiled = modify(build("tiny", dtype, compile_mode="compile"), MODIFIER)
    bound = {"float64": 1e-10, "float32": 1e-5}[dtype]
    frames = [to_data(rattled()), to_data(rattled(2)), to_data(rattled())]
    for batch in (structures()["batch"], AtomicDataDict.batched_from_list(frames)):
        want, got = force_loss_gradients(stock, batch), force_loss_gradients(compiled, batch)
        for name, reference in want.items():
            assert relative_error(got[name], reference) <= bound, name
        want, got = outputs(stock, batch), outputs(compiled, batch)
        for name in ("atomic_energy", "forces", "stress"):
            assert relative_error(got[name], want[name]) <= bound, name
    graphs = [graph for graph, _ in compiled._compiled_cache[0].values()]
    assert graphs and all("fastmlip.tensor_product_conv" in graph.code for graph in graphs)


@pytest.mark.parametrize("backend", [TRACING_ONLY])
def test_dynamo_traces_the_energy_model_without_a_break(backend):
    """What nequip-prepare-lmp-mliap does for models without ghost exchange."""
    model = build("tiny", "float64")
    modify(model, [{"modifier": "disable_ForceStressOutput"}, *MODIFIER])
    model.requires_grad_(False)
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=backend)
    results = []
    for run in (model, compiled):
        frame = structures()["bulk"]
        frame["pos"] = frame["pos"].clone().requires_grad_()
        energy = run(dict(frame))["total_energy"]
        results.append((energy.detach(), torch.autograd.grad(energy.sum(), frame["pos"])[0]))
    for want, got in zip(*results, strict=True):
        assert relative_error(got, want) < 1e-12

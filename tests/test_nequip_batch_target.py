"""``nequip-compile --target batch``, the layout of torch-sim: several frames in one call."""

import copy

import pytest
import torch
from nequip.data import AtomicDataDict
from nequip.scripts._compile_utils import BATCH_TARGET
from nequip.utils.aot import aot_export_model
from nequip_cases import build, outputs, relative_error, structures

import fastmlip
from fastmlip.integrations.nequip.models import NequIPModel

pytestmark = pytest.mark.usefixtures("nequip_state")


@pytest.mark.parametrize("form", ["exact", pytest.param("tabulated", marks=pytest.mark.slow)])
def test_several_frames_and_a_lone_atom(form, tmp_path):
    stock = build("tiny", "float64")
    if form == "exact":
        model, bound = fastmlip.accelerate(copy.deepcopy(stock)).requires_grad_(False), 1e-10
    else:
        model, bound = fastmlip.tabulate(stock, tol=1e-5), 1e-3
    frames = structures()
    traced = AtomicDataDict.batched_from_list([frames["bulk"]] * 2)
    dim = torch.export.Dim
    shapes = {
        "graph": dim("num_frames", min=2, max=1000),
        "node": dim("num_nodes", min=2, max=10**6),
        "edge": dim("num_edges", min=2, max=10**8),
    }
    file = str(tmp_path / "batch.nequip.pt2")
    inputs, names = BATCH_TARGET["input"], BATCH_TARGET["output"]
    aot_export_model(model, "cpu", inputs, names, traced, shapes, file)
    compiled = torch._inductor.aoti_load_package(file)
    for batch in (["bulk", "lone atom", "own images"], ["lone atom", "bulk"], ["bulk"] * 5):
        data = AtomicDataDict.batched_from_list([frames[name] for name in batch])
        want = outputs(stock, data)
        with torch.inference_mode():
            found = dict(zip(names, compiled([data[key] for key in inputs]), strict=True))
        for name, expected in want.items():
            assert relative_error(found[name], expected) < bound, (batch, name)
    _strides_are_seen_by_our_loader(compiled, names, inputs, data, found)


def _strides_are_seen_by_our_loader(compiled, names, inputs, data, found):
    """Compiled code reads memory as if it were contiguous."""
    holder = torch.nn.Module()
    holder.forward = lambda data: dict(zip(names, compiled([data[k] for k in inputs]), strict=True))
    loaded = NequIPModel(holder, "", "compiled", torch.float64, [], 0.0)
    apart = {key: value.T.contiguous().T for key, value in data.items()}
    assert not apart["pos"].is_contiguous()
    with torch.inference_mode():
        again = loaded.run(apart)
    # not the bits: those of matrix products depend on where operands lie
    assert all(relative_error(again[name], found[name]) < 1e-12 for name in names)

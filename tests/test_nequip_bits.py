"""A compiled model gives the same bits in every run, whatever the number of threads."""

import copy

import numpy as np
import pytest
import torch
from ase.build import bulk
from nequip.scripts._compile_utils import ASE_TARGET, single_frame_data_settings
from nequip.utils.aot import aot_export_model
from nequip_cases import build, to_data

import fastmlip

pytestmark = pytest.mark.usefixtures("nequip_state")


def frame():
    """216 atoms, 2,778 edges: work for several threads."""
    atoms = bulk("NaCl", "rocksalt", a=5.0, cubic=True) * 3
    atoms.positions += np.random.default_rng(0).normal(scale=0.2, size=atoms.positions.shape)
    return single_frame_data_settings(to_data(atoms))


def test_compiled_forces_have_the_same_bits_in_every_run(tmp_path):
    model, data = fastmlip.accelerate(build("tiny", "float32")).requires_grad_(False), frame()
    file, dim, before = str(tmp_path / "tiny.nequip.pt2"), torch.export.Dim, torch.get_num_threads()
    shapes = {"graph": dim.STATIC, "node": dim("nodes", min=2), "edge": dim("edges", min=2)}
    inputs, results = ASE_TARGET["input"], []
    try:
        torch.set_num_threads(4)  # what the compiler makes loops for
        aot_export_model(
            copy.deepcopy(model), "cpu", inputs, ASE_TARGET["output"], dict(data), shapes, file
        )
        package = torch._inductor.aoti_load_package(file)
        for threads in (4, 4, 4, 4, 4, 4, 1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                results.append(package([data[key] for key in inputs]))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value, first in zip(ASE_TARGET["output"], other, results[0], strict=True):
            assert torch.equal(value, first), name

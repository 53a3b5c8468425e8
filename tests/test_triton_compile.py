"""GPU kernels compiled ahead of time, without a GPU: registers, spills, atomics, 64-bit offsets.

The launchers run on meta tensors and their launches are recorded; each is then compiled for a
target. What is compiled is what would run.
"""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from fastmlip import backend
from fastmlip.testing import OPERATORS

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("fastmlip.kernels.tensor_product_conv")
pytestmark = pytest.mark.skipif(backend.interpreting(), reason="the interpreter compiles nothing")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CASES = OPERATORS["tensor_product_conv"].cases
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
LARGE = [f"nequip-{size}-hidden" for size in ("S", "M", "L", "XL")]
PASSES = ("forward", "backward", "double_backward")


@pytest.fixture
def launched(monkeypatch):
    """``launched(case, passes, dtype)``: the launches as ``(kernel, operands, constants)``."""

    def record(case, passes=PASSES, dtype=torch.float32):
        calls = []
        monkeypatch.setattr(
            kernels, "_run", lambda kernel, grid, *a, **c: calls.append((kernel, grid, a, c))
        )
        problem, nodes, edges = CASES[case].problem, 7, 20

        def rows(n, columns, dtype=dtype):
            return torch.empty(n, columns, device="meta", dtype=dtype)

        x, a, w = (
            rows(nodes, problem.dim_in1), rows(edges, problem.dim_in2),
            rows(edges, problem.weight_numel),
        )  # fmt: skip
        grad = rows(nodes, problem.dim_out)
        order = rows(2 * (nodes + 1) + 4 * edges, 1, torch.int64).flatten()
        before = {"forward": (), "backward": (grad,), "double_backward": (x, a, w, grad)}
        for name in passes:
            getattr(kernels, name)(*before[name], x, a, w, order, problem)
        return calls

    return record


def compiled(kernel, grid, operands, constants, target):
    """One launch, compiled with the options and the alignment that a launch has."""
    names = kernel.arg_names
    constexprs = dict(constants)
    signature, attributes = dict.fromkeys(names, "constexpr"), {}
    for position, (name, tensor) in enumerate(zip(names, operands, strict=False)):
        if tensor is None:
            constexprs[name] = None
        else:
            signature[name] = TYPES[tensor.dtype]
            if tensor.is_floating_point():
                attributes[(position,)] = [["tt.divisibility", 16]]
    at = {(names.index(name),): value for name, value in constexprs.items()}
    source = ASTSource(kernel, signature, constexprs=at, attrs=attributes)
    return triton.compile(source, target=target, options={"num_warps": 1, "num_stages": 1})


def resources(code, folder):
    """Registers of a lane, and bytes of its stack and spilled memory."""
    if "cubin" in code.asm:
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(code.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run(
            [tool, "-res-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
        names = ("REG:", "STACK:", "LOCAL:")
    else:
        text = code.asm["amdgcn"]
        names = (".vgpr_count:", ".private_segment_fixed_size:")
    used, *spilled = (int(re.search(rf"{re.escape(name)}\s*(\d+)", text)[1]) for name in names)
    return used, sum(spilled)


def check(calls, target, folder, record_property):
    """Nothing spills, nothing is atomic, and node and edge offsets are 64 bits wide."""
    registers = defaultdict(list)
    for kernel, *launch in calls:
        code = compiled(kernel, *launch, TARGETS[target])
        used, spilled = resources(code, folder)
        order = 1 if None in launch[1] else 2
        registers[f"{kernel.__name__} order {order}"].append(used)
        where = f"{kernel.__name__} for {target}, d1 = {launch[2]['D1']}"
        assert spilled == 0, f"{where}: {spilled} bytes of a lane are spilled"
        assembly = code.asm["ptx" if "ptx" in code.asm else "amdgcn"]
        assert not re.search(r"\b(atom|red)\.|_atomic_", assembly), f"{where}: atomics"
        narrow = re.findall(r"arith\.muli .*: i32", code.asm["ttir"])
        assert len(narrow) <= 1, f"{where}: only the block of channels may be 32 bits: {narrow}"
    record_property(f"registers on {target}", dict(registers))
    print(target, dict(registers))


def test_nequip_m_on_hopper(launched, tmp_path, record_property):
    calls = launched("nequip-M-hidden")
    assert len(calls) == 12
    check(calls, "sm_90", tmp_path, record_property)


def test_nequip_m_on_amd(launched, tmp_path, record_property):
    check(launched("nequip-M-hidden", PASSES[:2]), "gfx942", tmp_path, record_property)


def test_float64_stays_float64(launched):
    calls = launched("nequip-S-hidden", PASSES, torch.float64)
    for call in calls:
        code = compiled(*call, TARGETS["sm_90"])
        assert ".f64" in code.asm["ptx"] and ".f32" not in code.asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", [*LARGE, "nequip-M-parity", "mace-medium"])
def test_every_preset_on_every_target(launched, tmp_path, record_property, case, target):
    check(launched(case), target, tmp_path, record_property)


@pytest.mark.parametrize("case", ["nequip-XL-hidden", "mace-medium", "nequip-L-first"])
def test_launches_grow_with_nodes_in_x_only_and_write_every_path_once(launched, case):
    problem = CASES[case].problem
    calls = launched(case, PASSES[:2])
    blocks = {p.in1_offset for p in problem.paths}
    assert len(blocks) <= len(calls) / 2 <= 2 * len(blocks), "a launch or two for each input block"
    for kernel in {call[0] for call in calls}:
        weights = []
        for _, (x, y), _, constants in (call for call in calls if call[0] is kernel):
            assert x == 7 and y == -(-constants["MUL"] // constants["BLOCK_U"])
            weights += [path[2] for *_, paths in constants["TABLE"] for path in paths]
        assert sorted(weights) == sorted(p.weight_offset for p in problem.paths)

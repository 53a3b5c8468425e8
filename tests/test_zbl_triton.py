"""GPU kernels of ZBL: their numbers under Triton's interpreter, in a process of its own, and their
code compiled ahead of time."""

import re
from functools import partial

import pytest
import torch

from fastmlip import backend
from fastmlip.testing import OPERATORS
from fastmlip.testing.process import run_python

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("fastmlip.kernels.zbl")
pytestmark = pytest.mark.skipif(backend.interpreting(), reason="the interpreter compiles nothing")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CASES = OPERATORS["zbl"].cases
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}


def test_numbers_under_the_interpreter():
    """Every case against the reference, in memory that starts as NaN; the edges of the domain."""
    code = """
        from functools import partial
        import torch
        from fastmlip import use_backend
        from fastmlip.ops.zbl import R_MIN
        from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty
        from fastmlip.testing.cases.zbl import Problem
        op = OPERATORS["zbl"]
        f64, f32 = torch.float64, torch.float32
        def check(case, order, **more):
            both = (partial(f, problem=case.problem) for f in (op.op, op.reference))
            with use_backend("triton"), poison_empty():
                assert_same_derivatives(*both, op.make_inputs(case, **more), order)
        for case in op.cases.values():
            check(case, 3, nodes=4, edges=9)
            check(case, 2, dtype=f32, nodes=3, edges=80, sorted=True)
        for nodes, edges in ((3, 0), (0, 0), (1, 1), (1, 65)):
            check(op.cases["oxides"], 2, nodes=nodes, edges=edges)
        length = torch.tensor([0.0, 1e-5, R_MIN, 0.8, 5.0, 1e30, float("nan")], dtype=f64)
        index = torch.tensor([[0, 1, 2, 0, 1, 1, 3], [1, 2, 1, 3, 3, 3, 0]])
        for normed in (False, True):
            with use_backend("triton"), poison_empty():
                length.requires_grad_()
                problem = Problem((92, 1), 5.0, normed=normed)
                energy = op.op(length, index, torch.zeros(4, dtype=torch.int64), problem=problem)
                (slope,) = torch.autograd.grad(energy[:3].sum(), length, create_graph=True)
                (second,) = torch.autograd.grad(slope.sum(), length)
            assert energy[:3].isfinite().all() and energy[3].isnan()
            assert slope[:6].isfinite().all() and second[:6].isfinite().all()
            assert (slope[:2] == 0).all() and (slope[2:4] < 0).all() and (slope[4:6] == 0).all()
        bad = index.clone()
        bad[1, 0] = 4
        for wrong in (bad, bad.flip(0)):
            try:
                with use_backend("triton"):
                    op.op(length, wrong, torch.zeros(4, dtype=torch.int64), problem=problem)
            except (RuntimeError, IndexError):
                continue
            raise AssertionError("an index out of range was taken")
        print("agrees")
    """
    assert run_python(code, TRITON_INTERPRET="1").strip() == "agrees"


def launches(monkeypatch, name, dtype, weighted):
    """``(kernel, grid, operands, constants)`` of both launchers at every order, on meta tensors."""
    calls = []
    monkeypatch.setattr(
        kernels, "_run", lambda kernel, grid, *a, **c: calls.append((kernel, grid, a, c))
    )
    nodes, edges = 7, 130
    empty = partial(torch.empty, device="meta")
    problem = CASES[name].problem
    types = len(problem.atomic_numbers)
    length = empty(edges, dtype=dtype)
    cutoff = empty(edges, dtype=dtype) if problem.normed else empty(types, types).double()
    index, kinds = empty(2, edges).long(), empty(nodes).long()
    order_table = empty(2 * (nodes + 1) + 4 * edges).long()
    monkeypatch.setattr(torch.ops.fastmlip, "edge_order", lambda *_: order_table, raising=False)
    weight = length if weighted else None
    rest = (length, weight, cutoff, index, kinds, empty(types), empty(()).double(), problem.p)
    for order in range(4):
        kernels.nodes(*rest, order, nodes)
        kernels.edges(empty(nodes).double(), *rest, order)
    return calls


def compiled(kernel, operands, constants, target):
    names, constexprs = kernel.arg_names, dict(constants)
    signature, attributes = dict.fromkeys(names, "constexpr"), {}
    for position, (name, value) in enumerate(zip(names, operands, strict=False)):
        if value is None:
            constexprs[name] = None
        elif isinstance(value, int):
            signature[name] = "i32"
        else:
            signature[name] = TYPES[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
    at = {(names.index(name),): value for name, value in constexprs.items()}
    source = ASTSource(kernel, signature, constexprs=at, attrs=attributes)
    return triton.compile(source, target=target, options={"num_warps": 1, "num_stages": 1})


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("per-type cutoffs", "sm_90"),
        ("normed lengths", "sm_90"),
        pytest.param("p = 7.5", "sm_90", marks=pytest.mark.slow),
        pytest.param("p = 48, normed", "sm_80", marks=pytest.mark.slow),
        pytest.param("water", "gfx942", marks=pytest.mark.slow),
    ],
)
def test_compiles_in_float64_without_atomics(monkeypatch, name, target):
    calls = launches(monkeypatch, name, torch.float64, weighted=name == "normed lengths")
    assert {kernel.__name__ for kernel, *_ in calls} == {"_zbl_fwd_kernel", "_zbl_bwd_kernel"}
    assert {grid for _, grid, *_ in calls} == {(7,), (3,)}
    if target == "sm_90":
        calls = calls[:4]  # orders 0 and 1: energies and forces
    for kernel, _, operands, constants in calls:
        code = compiled(kernel, operands, constants, TARGETS[target])
        assembly = code.asm["ptx" if "ptx" in code.asm else "amdgcn"]
        assert not re.search(r"\b(atom|red)\.|_atomic_", assembly)
        assert "f32" not in code.asm["ttir"], "a constant or a value was rounded to float32"
        if "ptx" in code.asm:
            arithmetic = re.findall(r"\b(?:add|mul|fma|div)[.a-z]*\.f32", code.asm["ptx"])
            assert not arithmetic, f"float32 arithmetic in float64: {set(arithmetic)}"
            assert ".local" not in code.asm["ptx"].replace(".local_", ""), "a lane spills"


def test_float32_lengths_compile(monkeypatch):
    kernel, _, operands, constants = launches(monkeypatch, "oxides", torch.float32, True)[1]
    assert "st.global" in compiled(kernel, operands, constants, TARGETS["sm_90"]).asm["ptx"]

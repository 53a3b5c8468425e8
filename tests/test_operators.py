"""Every operator on the device of ``pytest --device``: cpu, or a GPU of NVIDIA or AMD.

The reference runs on the CPU in float64. On a CPU these are the C++ kernels, of which the files of
the operators test more; on a GPU they are the Triton kernels, and every case is there: one or two
of each operator, and the others among the slow tests, because the kernels of all take many minutes
to compile.
"""

from functools import partial
from pathlib import Path

import pytest
import torch

from fastmlip import backend
from fastmlip.ops import edge_embedding, zbl
from fastmlip.testing import OPERATORS, assert_close, derivatives, poison_empty
from fastmlip.testing.cases.edge_embedding import arguments as edge_embedding_arguments
from fastmlip.testing.process import run_python

SOME = {
    "tensor_product_conv": ("nequip-S-hidden", "odd-multiplicities", "shared-output"),
    "edge_embedding": ("nequip-M", "pairs-of-types"),
    "zbl": ("per-type cutoffs", "normed lengths"),
    "scale_shift": ("per type", "one value"),
}
SIZES = {
    "tensor_product_conv": ({"nodes": 3, "edges": 0}, {"nodes": 0, "edges": 0},
                            {"nodes": 9, "edges": 100, "sorted": True}),
    "edge_embedding": ({"edges": 0}, {"edges": 1}, {"edges": 129}),
    "zbl": ({"nodes": 3, "edges": 0}, {"nodes": 2, "edges": 65, "sorted": True}),
    "scale_shift": ({"atoms": 0}, {"atoms": 1025, "ghosts": 3}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def a_device_for_which_there_are_kernels(device):
    if device.type == "cuda" and (why := backend.triton_missing()):
        pytest.fail(f"--device {device}: {why}")
    if backend.interpreting():
        pytest.skip("TRITON_INTERPRET=1: the interpreter's tests are in test_*_triton.py")


def every_case(config):
    """``(operator, case)``: on a CPU some, on a GPU all, of which others are slow."""
    if config.getoption("--device") == "cpu":
        return [(operator, case) for operator, cases in SOME.items() for case in cases]
    rows = []
    for operator, row in OPERATORS.items():
        some = SOME.get(operator, tuple(row.cases)[:1])
        rows += [
            pytest.param(operator, case, marks=() if case in some else pytest.mark.slow)
            for case in row.cases
        ]
    return rows


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize(("operator", "case"), every_case(metafunc.config))


def moved(inputs, device):
    return type(inputs)(*(t.to(device) for t in inputs))


def functions(operator, case):
    row = OPERATORS[operator]
    return (partial(f, problem=_problem(operator, case)) for f in (row.op, row.reference))


def _problem(operator, case):
    row = OPERATORS[operator].cases[case]
    return row if operator == "edge_embedding" else row.problem


def prepared(operator, inputs):
    """The first case as the modules call it: tables and constants are made, and on the device."""
    name, device = SOME[operator][0], inputs[0].device
    row = OPERATORS[operator]
    problem = _problem(operator, name)
    if operator == "tensor_product_conv":
        return partial(row.op, problem=problem, tables=problem.tables().to(device))
    if operator == "scale_shift":
        return partial(row.op, problem=problem)
    if operator == "zbl":
        rest = problem.arguments(inputs)
        return lambda *operands: zbl(*operands, *rest)
    rest = edge_embedding_arguments(inputs, problem)
    del rest["edge_vec"], rest["roots"]
    return lambda vec, roots, _: torch.cat(
        [t.double() for t in edge_embedding(vec, roots.double(), **rest)], 1
    )


def agree(operator, case, inputs, device, order=2):
    """The operator on ``device``, in memory that starts as NaN, against the reference."""
    op, reference = functions(operator, case)
    wide = type(inputs)(*(t.double() if t.is_floating_point() else t for t in inputs))
    with poison_empty():
        got = derivatives(op, moved(inputs, device), order)
    for actual, truth in zip(got, derivatives(reference, wide, order), strict=True):
        assert actual.value.device.type == device.type
        assert_close(actual.value, truth.value, truth.order, f"{operator} {case} {truth.name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_up_to_second_derivatives(operator, case, dtype, device):
    row = OPERATORS[operator]
    agree(operator, case, row.make_inputs(row.cases[case], dtype), device)


@pytest.mark.parametrize(
    ("operator", "size"), [(o, s) for o, sizes in SIZES.items() for s in sizes], ids=str
)
def test_any_size(operator, size, device):
    name = SOME[operator][0]
    row = OPERATORS[operator]
    agree(operator, name, row.make_inputs(row.cases[name], torch.float32, **size), device)


@pytest.mark.parametrize("operator", SOME)
def test_the_same_bits_in_every_run(operator, device):
    name, row = SOME[operator][0], OPERATORS[operator]
    inputs = moved(row.make_inputs(row.cases[name], torch.float32), device)
    op, _ = functions(operator, name)
    first, *others = (derivatives(op, inputs, 2) for _ in range(3))
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a.value, b.value), f"{operator} {a.name} differs from run to run"


@pytest.mark.parametrize("operator", SOME)
def test_compiled(operator, device):
    name, row = SOME[operator][0], OPERATORS[operator]
    _, reference = functions(operator, name)
    op = prepared(operator, moved(row.make_inputs(row.cases[name], torch.float32), device))
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=compiler(device))
    for seed in (0, 1):
        inputs = row.make_inputs(row.cases[name], torch.float32, seed=seed)
        wide = type(inputs)(*(t.double() if t.is_floating_point() else t for t in inputs))
        got = derivatives(compiled, moved(inputs, device), 1)
        for actual, truth in zip(got, derivatives(reference, wide, 1), strict=True):
            assert_close(actual.value.to(torch.float32), truth.value, truth.order, truth.name)


def compiler(device):
    return "aot_eager" if device.type == "cpu" else "inductor"


# ---------------------------------------------------------------- on a GPU alone


@pytest.fixture
def gpu(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU: pytest --device cuda")
    return device


@pytest.mark.parametrize("operator", SOME)
def test_a_graph_captures_forward_and_backward(operator, gpu):
    """No host synchronisation: with one, capture fails."""
    name, row = SOME[operator][0], OPERATORS[operator]
    inputs = moved(row.make_inputs(row.cases[name], torch.float32), gpu)
    op = prepared(operator, inputs)
    leaf = inputs[0].requires_grad_()

    def step():
        return torch.autograd.grad(op(leaf, *inputs[1:]).sum(), leaf)[0]

    with torch.cuda.device(gpu):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            expected = step()  # compiles the kernels
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("operator", SOME)
def test_launches_go_to_the_current_stream(operator, gpu):
    """Behind a long wait on a side stream: a launch elsewhere would read the operands too early."""
    name, row = SOME[operator][0], OPERATORS[operator]
    inputs = moved(row.make_inputs(row.cases[name], torch.float32), gpu)
    op = prepared(operator, inputs)
    expected = op(*inputs)
    with torch.cuda.device(gpu):
        late = torch.full_like(inputs[0], float("nan"))
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(50_000_000)
            late.copy_(inputs[0])
            out = op(late, *inputs[1:])
        torch.cuda.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("operator", SOME)
def test_launches_go_to_the_device_of_the_operands(operator, gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    name, row = SOME[operator][0], OPERATORS[operator]
    other = torch.device("cuda", (gpu.index or 0) ^ 1)  # while the current device stays
    agree(operator, name, row.make_inputs(row.cases[name], torch.float32), other, order=1)


# ---------------------------------------------------------------- the option itself

FAKE_GPU = """
import torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch.cuda.set_device = lambda device: None
"""


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_what_is_collected_where_there_is_a_gpu(name, tmp_path):
    """NequIP's tests run on the device that was asked for; on a GPU, others do not run."""
    (tmp_path / "fake_gpu.py").write_text(FAKE_GPU)
    code = f"""
        import subprocess, sys
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "fake_gpu", "--device", {name!r}, "-q",
             "--collect-only", "-m", "not slow", *sys.argv[1:]],
            capture_output=True, text=True,
        )
        print(done.stdout + done.stderr)
    """
    files = [
        Path(__file__).with_name(f"test_{of}.py")
        for of in ("operators", "nequip_unittests", "zbl_triton")
    ]
    seen = run_python(code, *map(str, files), PYTHONPATH=str(tmp_path))
    of_nequip = [line for line in seen.splitlines() if "test_nequip_unittests.py::" in line]
    assert of_nequip and not [line for line in of_nequip if "cuda" in line or "cpu" in line]
    assert ("test_zbl_triton" in seen) == (name == "cpu")
    cases = len([line for line in seen.splitlines() if "test_up_to_second_derivatives" in line])
    assert cases == 2 * sum(len(SOME.get(operator, "1")) for operator in
                            (SOME if name == "cpu" else OPERATORS))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda", "sees no GPU"), ("tpu9", "tpu9"), ("meta", "expected cpu or cuda")],
)
def test_a_device_that_is_not_there_is_refused(name, message):
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code = f"""
        import subprocess, sys
        done = subprocess.run(
            [sys.executable, "-m", "pytest", {__file__!r}, "--device", {name!r}],
            capture_output=True, text=True,
        )
        print(done.returncode, done.stdout + done.stderr)
    """
    printed = run_python(code)
    assert printed.startswith("4 ") and message in printed

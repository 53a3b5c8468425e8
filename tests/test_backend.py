"""Which implementation runs: by rule, by name, and what happens where it is missing."""

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import fastmlip
from fastmlip import BackendUnavailableError, backend, use_backend
from fastmlip.testing import OPERATORS, assert_close, make_inputs
from fastmlip.testing.process import run_python

OP = OPERATORS["tensor_product_conv"]
CASE = OP.cases["odd-multiplicities"]
PACKAGE = Path(fastmlip.__file__).parent


def conv():
    return OP.op(*make_inputs(CASE), CASE.problem)


# ---------------------------------------------------------------- by rule and by name


@pytest.mark.skipif(backend.asked() != "auto", reason="FASTMLIP_BACKEND is set")
def test_cpu_tensors_run_the_cpp_kernels_without_being_asked(monkeypatch):
    assert backend.choose(torch.zeros(1)) == "cpp"
    assert fastmlip.info()["cpu tensors"] == "cpp"
    monkeypatch.setattr(sys.modules["fastmlip.ops.tensor_product_conv"], "reference", None)
    assert conv().isfinite().all()  # the reference, now broken, had no part in it


def test_a_named_backend_runs_inside_its_block_only():
    before = backend.asked()
    with use_backend("reference"):
        assert backend.choose(torch.zeros(1)) == "reference"
        with use_backend("cpp"):
            assert backend.choose(torch.zeros(1)) == "cpp"
        assert backend.choose(torch.zeros(1)) == "reference"
    assert backend.asked() == before
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backend.asked() == before


def test_blocks_of_two_threads_that_overlap():
    """Each in its own; the first to enter is the first to leave, inside the other's block."""
    entered, left, seen = threading.Event(), threading.Event(), []
    before = backend.asked()

    def second():
        with use_backend("reference"):
            entered.set()
            assert left.wait(60)
            seen.append(backend.asked())
        seen.append(backend.asked())

    other = threading.Thread(target=second)
    with use_backend("cpp"):
        other.start()
        assert entered.wait(60)
        seen.append(backend.asked())
    left.set()
    other.join(60)
    assert seen == ["cpp", "reference", before]
    assert backend.asked() == before


def test_blocks_of_two_tasks_that_overlap():
    async def task(name, mine, others):
        with use_backend(name):
            mine.set()
            await others.wait()
            await asyncio.sleep(0)
            return backend.asked()

    async def both():
        first, second = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("cpp", first, second), task("reference", second, first))

    before = backend.asked()
    assert asyncio.run(both()) == ["cpp", "reference"]
    assert backend.asked() == before


@pytest.mark.skipif(backend.asked() != "auto", reason="FASTMLIP_BACKEND is set")
def test_a_compiled_function_follows_the_block(monkeypatch):
    """In each block, and in each thread, the graph of its backend; none is made twice."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.code)
        return graph

    inputs = make_inputs(CASE)
    tables = CASE.problem.tables()
    compiled = torch.compile(
        lambda x: OP.op(x, *inputs[1:], CASE.problem, tables), backend=keep, fullgraph=True
    )

    def run(name):
        with use_backend(name):
            return compiled(inputs.x)

    results = [compiled(inputs.x)]
    with ThreadPoolExecutor(2) as threads:
        for name in ("reference", "cpp", "reference"):
            results += [run(name), threads.submit(run, name).result()]
    assert len(graphs) == 3
    assert ["tensor_product_conv_cpu" in code for code in graphs] == [True, False, True]
    for result in results:
        assert_close(result, results[0])


def test_unknown_name():
    with pytest.raises(ValueError, match=r"use_backend: expected one of .*'cpp'.* got 'cuda'"):
        use_backend("cuda").__enter__()


@pytest.mark.parametrize("name", ["cpp", "triton"])
def test_a_missing_backend_asked_for_by_name_is_an_error_with_the_reason(name, monkeypatch):
    for missing in ("load_extension", "triton_missing"):
        monkeypatch.setattr(backend, missing, lambda: "it is simulated to be missing")
    with pytest.raises(BackendUnavailableError, match=f"'{name}'.*simulated to be missing"):
        use_backend(name).__enter__()
    monkeypatch.setattr(backend, "_no_cpp", "it is simulated to be missing")
    assert backend.choose(torch.zeros(1)) == "reference"


def test_cpp_refuses_tensors_of_another_device():
    with use_backend("cpp"), pytest.raises(BackendUnavailableError, match=r"cpu tensors.*on meta"):
        backend.choose(torch.zeros(1, device="meta"))


@pytest.mark.skipif(backend.triton_missing() is None, reason="Triton runs here")
def test_triton_without_a_gpu_says_why():
    with pytest.raises(BackendUnavailableError, match=r"no GPU is visible|not installed"):
        use_backend("triton").__enter__()


def test_info_answers_every_question():
    info = fastmlip.info()
    assert info["instruction set"] in ISAS
    assert info["torch"] == torch.__version__
    assert all(isinstance(value, str) and value for value in info.values())


# ---------------------------------------------------------------- read once by a process

ISAS = ["portable", "avx2", "avx512"]
COMPARE = """
    from functools import partial
    import torch, fastmlip
    from fastmlip.testing import OPERATORS, assert_same_derivatives, make_inputs
    op = OPERATORS["tensor_product_conv"]
    for name in ("odd-multiplicities", "shared-output", "high-l", "nequip-S-hidden"):
        case = op.cases[name]
        for dtype in (torch.float32, torch.float64):
            functions = (partial(f, problem=case.problem) for f in (op.op, op.reference))
            assert_same_derivatives(*functions, make_inputs(case, dtype), order=2)
    print(fastmlip.info()["instruction set"], end="")
"""


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_numbers(isa):
    best = fastmlip.info()["instruction set"]
    if ISAS.index(isa) > ISAS.index(best):
        pytest.skip(f"this processor runs at most {best}")
    assert run_python(COMPARE, FASTMLIP_ISA=isa) == isa


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FASTMLIP_BACKEND", "cuda", "ValueError FASTMLIP_BACKEND: expected one of"),
        ("FASTMLIP_ISA", "sse9", "RuntimeError FASTMLIP_ISA: 'sse9' is not an instruction set"),
    ],
)
def test_a_bad_environment_variable_is_an_error_that_names_it(variable, value, message):
    code = """
        import torch
        try:
            import fastmlip
            from fastmlip.testing import OPERATORS, make_inputs
            op = OPERATORS["tensor_product_conv"]
            op.op(*make_inputs(op.cases["path-weights"]), op.cases["path-weights"].problem)
        except Exception as error:
            print(type(error).__name__, error)
    """
    assert message in run_python(code, **{variable: value})


def test_the_environment_names_a_backend():
    code = "import fastmlip, torch; print(fastmlip.backend.choose(torch.zeros(1)), end='')"
    assert run_python(code, FASTMLIP_BACKEND="reference") == "reference"


# ---------------------------------------------------------------- a package without its extension


@pytest.fixture(scope="module", params=["absent", "broken"])
def without_extension(request, tmp_path_factory):
    """A copy of the package whose C++ library is not there, or is no library."""
    root = tmp_path_factory.mktemp(request.param)
    shutil.copytree(
        PACKAGE, root / "fastmlip", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    if request.param == "broken":
        (root / "fastmlip" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"not ELF")
    return root


def test_without_the_extension_import_warns_and_the_reference_runs(without_extension, tmp_path):
    inputs = make_inputs(CASE)
    torch.save([*inputs, conv()], tmp_path / "numbers.pt")
    code = """
        import sys, warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import fastmlip
        import torch
        from functools import partial
        from fastmlip.testing import OPERATORS, assert_close, derivatives
        assert any("plain-PyTorch reference" in str(w.message) for w in caught), caught
        assert sys.argv[1] in fastmlip.__file__
        info = fastmlip.info()
        assert info["cpu tensors"].startswith("reference (the C++ extension"), info
        assert info["instruction set"] == "none"
        op = OPERATORS["tensor_product_conv"]
        case = op.cases["odd-multiplicities"]
        *inputs, expected = torch.load(sys.argv[2])
        assert_close(op.op(*inputs, case.problem), expected)
        mine, plain = (partial(f, problem=case.problem) for f in (op.op, op.reference))
        for got, want in zip(derivatives(mine, inputs), derivatives(plain, inputs)):
            assert_close(got.value, want.value, got.order, got.name)
        try:
            fastmlip.use_backend("cpp").__enter__()
        except fastmlip.BackendUnavailableError as error:
            print(error)
    """
    printed = run_python(
        code,
        str(without_extension),
        str(tmp_path / "numbers.pt"),
        PYTHONPATH=str(without_extension),
    )
    assert "use_backend: backend 'cpp' was asked for, but the C++ extension" in printed


BROKEN = "raise ImportError('libtriton.so: cannot open shared object file')"


@pytest.mark.parametrize(
    ("triton", "words"),
    [("missing", "Triton is not installed"),
     (BROKEN, "Triton does not load: ImportError: libtriton.so: cannot open")],
)  # fmt: skip
def test_a_triton_that_is_missing_or_broken_is_said_by_info_and_by_nothing_else(
    triton, words, tmp_path
):
    code = "import fastmlip; print(fastmlip.info()['triton'], fastmlip.info()['gpu tensors'])"
    if triton == "missing":
        code = f"import sys; sys.modules['triton'] = None; {code}"
    else:
        (tmp_path / "triton").mkdir()
        (tmp_path / "triton/__init__.py").write_text(triton)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Triton" not in done.stderr  # ten lines of torch's, with its triton_op
    assert done.stdout.startswith(words) and f"none run ({words}" in done.stdout


def test_a_broken_triton_is_warned_of_where_a_gpu_would_take_it(monkeypatch, recwarn):
    for why, gpu, warned in (("Triton does not load: it is broken", True, 1),
                             ("Triton does not load: it is broken", False, 0),
                             (backend.NO_TRITON, True, 0)):  # fmt: skip
        monkeypatch.setattr(backend, "_no_triton", why)
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        recwarn.clear()
        backend.warn_if_slow()
        found = [w for w in recwarn if "it is broken; operators on a GPU" in str(w.message)]
        assert len(found) == warned

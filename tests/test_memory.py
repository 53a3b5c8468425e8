"""Memory of the C++ kernels: what is kept and given back, what happens where there is none, forks.

Each test runs a function of this file in a process of its own.
"""

import ctypes
import os
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

import fastmlip
from fastmlip.testing import OPERATORS, derivatives
from fastmlip.testing.process import run_python

HERE = Path(__file__).parent
MIB = 1 << 20


def in_its_own_process(function, *arguments, timeout=300, **environment):
    """Its output; what waits for ever is an error."""
    module, name = function.__module__, function.__name__
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import {module} as file\n"
    environment = {"OMP_NUM_THREADS": "2", **environment}
    return run_python(f"{code}file.{name}(*{arguments!r})", timeout=timeout, **environment)


def inputs_of(name, case, **size):
    table = OPERATORS[name]
    problem = getattr(table.cases[case], "problem", table.cases[case])
    inputs = table.make_inputs(table.cases[case], torch.float32, **size)
    return lambda order=2: [
        d.value for d in derivatives(lambda *t: table.op(*t, problem=problem), inputs, order)
    ]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- no memory


def every_allocation_fails(name, threads):
    """Each one that the extension makes, one after the other, in all derivatives."""
    torch.set_num_threads(threads)
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[0] for line in lines if "fastmlip/_C." in line]
    ends = [int(end, 16) for line in mapped for end in line.split("-")]
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
    empty = ctypes.cast(torch_cpu.aoti_torch_empty_strided, ctypes.c_void_p)
    library.watch(ctypes.c_uint64(min(ends)), ctypes.c_uint64(max(ends)), empty)
    table, count = OPERATORS[name], 0
    for case in list(table.cases)[: 3 if threads == 1 else 1]:
        results = inputs_of(name, case, **(table.large if threads > 1 else {}))
        expected = results()
        for call in range(1, 10_000):
            library.fail_at(ctypes.c_int64(call))
            try:
                results()
            except MemoryError as error:
                assert library.failed(), error
            else:
                assert not library.failed(), f"{case}: nobody saw that call {call} failed"
                break
            finally:
                library.fail_at(ctypes.c_int64(0))
            count += 1
            if call < 20 or call % 10 == 0:
                assert same(results(), expected), f"{case}: other bits after call {call} failed"
        assert same(results(), expected)
    print(count, "allocations failed")


@pytest.fixture(scope="session")
def failing_allocator(tmp_path_factory):
    library = tmp_path_factory.mktemp("allocator") / "failing_allocator.so"
    compiler = os.environ.get("CXX", "g++").split()
    source = HERE / "failing_allocator.cpp"
    subprocess.run([*compiler, "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", library],
                   check=True)  # fmt: skip
    return str(library)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", OPERATORS)
def test_every_allocation_that_fails_is_a_memory_error(name, threads, failing_allocator):
    """With nothing kept, so that all memory is asked for."""
    printed = in_its_own_process(
        every_allocation_fails, name, threads, LD_PRELOAD=failing_allocator, FASTMLIP_MEMORY="0"
    )
    assert int(printed.split()[0]) >= 3


def a_limit_of_memory(name, case):
    torch.set_num_threads(1)
    inputs_of(name, case)(1)
    results = inputs_of(name, case, nodes=2000, edges=12_000)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 10 * MIB, resource.RLIM_INFINITY))
    for _ in range(3):
        with pytest.raises((MemoryError, RuntimeError)) as error:
            results(1)
        # torch's own operators say it so
        assert error.type is MemoryError or "can't allocate memory" in str(error.value)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    got = results(1)
    fastmlip.release_memory()
    assert same(got, results(1)) and all(t.isfinite().all() for t in got)


@pytest.mark.parametrize(
    ("name", "case"),
    [("radial_conv", "nequip-M-hidden, pairs"), ("tensor_product_conv", "nequip-M-hidden")],
)
def test_a_limit_of_memory_that_is_lifted_again(name, case):
    in_its_own_process(a_limit_of_memory, name, case)


# ---------------------------------------------------------------- budget


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def what_stays(budget):
    """After calls whose scratch memory is 190 MiB, in two threads that come to an end."""
    fastmlip.release_memory()
    before = resident()
    table = OPERATORS["tensor_product_conv"]
    case = table.cases["nequip-M-hidden"]
    inputs = table.make_inputs(case, torch.float32, nodes=50_000, edges=1)
    tensors = resident()
    for _ in range(2):
        thread = threading.Thread(target=lambda: table.op(*inputs, problem=case.problem))
        thread.start()
        thread.join()
    inputs = None
    kept = fastmlip.release_memory()
    after = resident()
    print(f"{before:.0f} MiB, {tensors:.0f} with inputs, {after:.0f} at the end; kept {kept}")
    assert (kept > 0 or budget < 190) and kept <= budget * MIB
    assert after < before + 40
    assert fastmlip.release_memory() == 0


@pytest.mark.parametrize("budget", [0, 32, 400])
def test_no_more_is_kept_than_the_budget_and_all_of_it_is_released(budget):
    in_its_own_process(what_stays, budget, FASTMLIP_MEMORY=str(budget))


# ---------------------------------------------------------------- threads and processes


def forks_under_load(forks):
    """Six threads are in the operator whenever the process forks, and children call it."""
    torch.set_num_threads(1)
    table = OPERATORS["radial_conv"]
    case = table.cases["nequip-M-hidden, pairs"]
    inputs = table.make_inputs(case, torch.float32, nodes=20, edges=200)
    inputs = [t.detach() for t in inputs]
    expected = table.op(*inputs, problem=case.problem)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            table.op(*inputs, problem=case.problem)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for number in range(forks):
        time.sleep(0.001)
        child = os.fork()
        if not child:
            signal.alarm(60)  # ends it
            right = torch.equal(table.op(*inputs, problem=case.problem), expected)
            os._exit(0 if right else 1)
        status = os.waitpid(child, 0)[1]
        assert not os.WIFSIGNALED(status), f"child {number} hung"
        assert status == 0, f"child {number} computed something else"
    stop.set()
    for thread in threads:
        thread.join()


def test_children_of_a_process_that_forks_while_its_threads_work_do_not_hang():
    in_its_own_process(forks_under_load, 300, timeout=600)


def test_the_memory_of_other_threads_is_released():
    """What they gave back, of threads that ended too; and they go on."""
    table = OPERATORS["tensor_product_conv"]
    case = next(iter(table.cases.values()))
    inputs = table.make_inputs(case, **table.large)
    expected = table.op(*inputs, problem=case.problem)
    fastmlip.release_memory()
    thread = threading.Thread(target=lambda: table.op(*inputs, problem=case.problem))
    thread.start()
    thread.join()
    assert fastmlip.release_memory() > 0
    assert torch.equal(table.op(*inputs, problem=case.problem), expected)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("64", 64 * MIB), ("64MiB", 64 * MIB), ("1.5GiB", 1536 * MIB), ("2048KiB", 2 * MIB), ("0", 0)],
)
def test_units_of_the_budget(text, kept):
    in_its_own_process(no_more_than, kept, FASTMLIP_MEMORY=text)


def no_more_than(most):
    for case in OPERATORS["tensor_product_conv"].cases:
        inputs_of("tensor_product_conv", case, nodes=2000, edges=2000)(1)
    kept = fastmlip.release_memory()
    assert kept <= most and (kept > 0 or most == 0), kept


@pytest.mark.parametrize("text", ["much", "-1", "64 MiB", "64MB", "nan", "1e30"])
def test_a_budget_that_is_none(text):
    printed = in_its_own_process(says_what_it_expects, FASTMLIP_MEMORY=text)
    assert "FASTMLIP_MEMORY: expected a number of MiB, or a number with KiB" in printed
    assert f"got '{text}'" in printed


def says_what_it_expects():
    with pytest.raises(RuntimeError) as error:
        inputs_of("tensor_product_conv", "path-weights")(0)
    print(error.value)

"""Running the benchmarks: rows in turns, a default run, what a row times. No time is asserted."""

import os
import re
import subprocess
import sys

import nequip_cases
import pytest
import torch
from test_bench import invoke

from fastmlip.bench import default_run, environment, peers, results, rows, run
from fastmlip.testing import OPERATORS, assert_close, make_inputs

# ---------------------------------------------------------------- running


SUITE = """
import torch
from fastmlip.bench.rows import Derivatives

import pytest

@pytest.mark.parametrize("who", ["peer", "fastmlip"])
def bench_square(compare, device, who):
    x = torch.ones(7, device=device)
    square = Derivatives(lambda: x * x, [x])
    compare(who, square.timed("forward"), case="ones", what="forward", size=("atoms", 7),
            moved=square.moved("forward"))

def bench_wrong(compare):
    assert 1 == 2, "the two do not agree"
    compare("fastmlip", lambda: None)
"""


def test_rows_run_in_turns_and_a_row_that_fails_is_reported(tmp_path, monkeypatch):
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "conftest.py").write_text("from fastmlip.bench.conftest import *\n")
    (suite / "bench_made_up.py").write_text(SUITE)
    monkeypatch.setattr(run, "SUITE", suite)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # which would turn timing off
    monkeypatch.setattr(run, "EVERY", 0.0)
    result = invoke("--all", "--report", tmp_path / "out", "--blocks", 2, "--seconds", 0.01)
    assert result.exit_code == 1
    # no terminal here: what comes is said first, then each step, and the table is the end
    told = result.output.splitlines()
    assert told[:2] == ["importing", "3 rows, 2 times each: about 1 min on 2 cores"]
    assert re.match(r"1 of 6 steps after \d+ s: bench_square\[0-peer\]", told[2])
    assert told[7].startswith("6 of 6 steps")
    assert re.search(r"made_up +ones +forward +peer ", result.output)
    assert "2 rows failed and were not timed: bench_wrong[0], bench_wrong[1]" in result.output
    report = results.load(tmp_path / "out")
    assert [row.who for row in report.rows] == ["peer", "fastmlip"]
    assert report.rows[0].group == ("made_up", "ones", "forward", "atoms", 7)
    assert report.rows[1].moved == 7 * 4 * 2 and report.rows[1].rounds >= 3
    assert min(report.environment["peaks"].values()) > 0
    assert report.environment["threads"] == 2
    assert "torch" in report.environment["versions"]
    assert "bench_wrong[1]" in (tmp_path / "out" / "index.html").read_text()
    log = (tmp_path / "out" / "pytest.log").read_text()
    order = re.findall(r"bench_square\[(\S+)\] PASSED", log)
    assert order == ["0-peer", "0-fastmlip", "1-peer", "1-fastmlip"]


def test_a_suite_that_does_not_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SUITE", tmp_path)  # without the conftest that knows --threads
    result = invoke()
    assert result.exit_code == 1
    assert "pytest timed nothing, exit status 4; the end of what it printed:" in result.output
    assert "pytest.log" not in result.output  # which is deleted
    assert "unrecognized arguments: --threads=2" in result.output


def test_rows_that_do_not_exist_are_said_to(monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    result = invoke("-k", "nosuchrow")
    assert result.exit_code == 1
    assert "no row is chosen by" in result.output and "-k nosuchrow" in result.output
    assert "edge_embedding" in result.output and "pytest.log" not in result.output


def collected(*options):
    """Functions and parameters of a run's steps, and what it says of its length."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(run.SUITE), "--collect-only", "-p", "no:cacheprovider",
         "--benchmark-only", f"--rootdir={run.SUITE}", f"--config-file={os.devnull}",
         *("-o", "python_files=bench_*.py"), *("-o", "python_functions=bench_*"), *options],
        capture_output=True, text=True, timeout=600,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = re.findall(r"<Function (bench_\w+)(?:\[(.*)\])?>", done.stdout)
    (said,) = [line for line in done.stdout.splitlines() if run.COLLECTED.match(line)]
    return steps, int(re.search(r"about (\d+) min", said)[1])


def test_a_default_run_takes_ten_minutes_and_has_every_operator_and_model():
    steps, minutes = collected("--blocks=3")
    assert minutes <= 9 and len(steps) <= 240
    found = {function for function, _ in steps}
    assert found == set(default_run.ROWS)  # and so each value there is one that a row has
    assert {f"bench_{name}" for name in OPERATORS} - found == {"bench_tensor_product_conv"}
    parameters = " ".join(rest for _, rest in steps)
    for chosen in default_run.ROWS.values():
        for values in chosen.values():
            assert all(str(value) in parameters for value in values), values
    everything, longer = collected("--all", "--blocks=3")
    assert len(everything) > 5 * len(steps) and longer > 60
    assert set(steps) <= set(everything)


def test_peaks_are_those_of_float32_whatever_the_default_is(monkeypatch):
    made, randn = [], torch.randn

    def small(*_, **named):
        made.append(randn(4, 4, **named))
        return made[-1]

    monkeypatch.setattr(torch, "randn", small)
    with nequip_cases.nequip_state():
        assert torch.get_default_dtype() == torch.float64
        environment.peaks(repeats=1)
    assert [t.dtype for t in made] == [torch.float32] * 2


def test_every_operator_has_a_benchmark():
    files = {path.stem for path in run.SUITE.glob("bench_*.py")}
    assert files >= {f"bench_{name}" for name in OPERATORS}


# ---------------------------------------------------------------- what is timed


def test_derivatives_are_those_of_the_function():
    x = torch.tensor([0.5, 2.0, -1.5], dtype=torch.float64)
    a = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    cubic = rows.Derivatives(lambda: a * x**3, [x, a])
    out, dx, da, d2g, d2x, d2a = cubic.all()
    (g,), (hx, ha) = cubic.grads, cubic.directions
    torch.testing.assert_close(out, a * x**3)
    torch.testing.assert_close((dx, da), (3 * a * x**2 * g, x**3 * g))
    torch.testing.assert_close(d2g, 3 * a * x**2 * hx + x**3 * ha)
    torch.testing.assert_close(d2x, (6 * a * x * hx + 3 * x**2 * ha) * g)
    torch.testing.assert_close(d2a, 3 * x**2 * hx * g)
    assert cubic.orders() == [0, 1, 1, 2, 2, 2]


def test_the_double_backward_alone_calls_nothing_before_it():
    calls = []

    def function():
        calls.append(1)
        return x.square() * 3

    x = torch.arange(4.0)
    square = rows.Derivatives(function, [x])
    alone = square.timed("double backward")
    before = len(calls)
    results = [alone(), alone()]  # as often as one likes
    assert len(calls) == before
    for d2g, d2x in results:
        torch.testing.assert_close(d2g, 6 * x.detach() * square.directions[0])
        torch.testing.assert_close(d2x, 6 * square.grads[0].detach() * square.directions[0])
    for what, more in (("forward", 1), ("forward+backward", 1)):
        square.timed(what)()
        assert len(calls) == before + more
        before += more


def test_a_constant_gradient_has_a_double_backward_pass_too():
    x = torch.arange(4.0)
    twice = rows.Derivatives(lambda: (2 * x, torch.ones(2, requires_grad=True) * 1), [x])
    assert [t.tolist() for t in twice.all()][-1] == [0.0] * 4


def test_bytes_count_what_is_read_and_written_once():
    x, a, index = torch.ones(5, 3), torch.ones(5, 1), torch.zeros(5, dtype=torch.int64)
    product = rows.Derivatives(lambda: (x * a).sum(1), [x, a], [index])
    operands, output, others = 4 * 20, 4 * 5, 8 * 5
    forward = operands + others + output
    backward = output + operands + others + operands
    double_backward = operands + output + operands + others + output + operands
    assert product.moved("forward") == forward
    assert product.moved("forward+backward") == forward + backward
    assert product.moved("double backward") == double_backward
    every = "forward+backward+double backward"
    assert product.moved(every) == forward + backward + double_backward
    flops = {"forward": 1, "backward": 3, "double backward": 7}
    assert [rows.total(flops, what) for what in rows.WHATS] == [1, 4, 11, 7]


def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch):
    from fastmlip.bench import bench_tensor_product_conv as conv

    class Wrong(conv.TensorProductConv):
        def forward(self, x, edge_attr, edge_weight, edge_dst, edge_src):
            return super().forward(x, edge_attr, edge_weight, edge_dst, edge_src) * 1.001

    conv._function("nequip-S-last", "fastmlip", "cpu")
    conv._function.cache_clear()
    monkeypatch.setattr(conv, "TensorProductConv", Wrong)
    with pytest.raises(AssertionError, match="fastmlip on nequip-S-last"):
        conv._function("nequip-S-last", "fastmlip", "cpu")


@pytest.mark.parametrize("who", ["e3nn", "cuequivariance"])
@pytest.mark.parametrize("name", ["path-weights", "shared-output", "unused-blocks"])
def test_peers_agree_with_the_reference(name, who):
    makers = peers.convolutions("cpu")
    if who not in makers:
        pytest.skip(f"{who} is not installed")
    case = OPERATORS["tensor_product_conv"].cases[name]
    inputs = make_inputs(case, torch.float32)
    convolution = makers[who](case, "cpu")
    reference = OPERATORS["tensor_product_conv"].reference
    got = rows.Derivatives(lambda: convolution(*inputs), inputs[:3], inputs[3:])
    wide = inputs.to(torch.float64)
    want = rows.Derivatives(lambda: reference(*wide, case.problem), wide[:3], wide[3:])
    for a, b, order in zip(got.all(), want.all(), got.orders(), strict=True):
        assert_close(a, b, order)

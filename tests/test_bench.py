"""The benchmarks' report: numbers, files, comparison; what a row times. No time is asserted."""

import copy
import csv
import json
import os
import re
import subprocess
import sys

import nequip_cases
import pytest
import torch
from typer.testing import CliRunner

from fastmlip.bench import default_run, environment, peers, results, rows, run, summary
from fastmlip.cli import app
from fastmlip.testing import OPERATORS, assert_close, make_inputs

ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "0123abc+",
    "device": "cpu",
    "threads": 2,
    "load before": 0.25,
    "machine": {"processor": "a <processor>", "cores": 4, "memory GiB": 8.0, "gpu": "none"},
    "versions": {"fastmlip": "0.1.0", "torch": "2.13.0"},
    "backends": {"cpu tensors": "cpp"},
    "peaks": {"matrix product GFLOP/s": 100.0, "copy GB/s": 20.0},
}


def benchmark(who, data, operator="conv", case="S", what="forward", size=("edges", 100), **extra):
    """One entry of the JSON that ``pytest bench --benchmark-json`` writes."""
    extra = {
        "who": who, "operator": operator, "case": case, "what": what, "size": list(size),
        "threads": 2, "device": "cpu", "flops": None, "moved": None, **extra,
    }  # fmt: skip
    return {"extra_info": extra, "stats": {"data": data}}


def recorded():
    """Rows of two operators; ``conv`` in three sizes, with a block in two parts; a peak."""
    benchmarks = [
        benchmark("e3nn", [8.0, 9.0], flops=4e9, moved=2e9),
        benchmark("fastmlip", [1.0, 2.0], flops=4e9, moved=2e9, note="5 <nodes>"),
        benchmark("e3nn", [4.0, 10.0]),
        benchmark("fastmlip", [0.5, 3.0]),
        benchmark("NequIP", [3.0], "zbl", "oxides", "double backward"),
        benchmark("fastmlip", [6.0], "zbl", "oxides", "double backward"),
        benchmark("peer", [1e-9], "nequip", "NequIP M peak", "", (), peak_mib=800.0),
        benchmark("fastmlip", [1e-9], "nequip", "NequIP M peak", "", (), peak_mib=200.0),
    ]
    for edges in (1000, 10000):
        for who, scale in (("e3nn", 8.0), ("fastmlip", 2.0)):
            benchmarks.append(benchmark(who, [scale * edges / 100], size=("edges", edges)))
    return {"benchmarks": benchmarks, "fastmlip": copy.deepcopy(ENVIRONMENT)}


@pytest.fixture
def timings(tmp_path):
    path = tmp_path / "timings.json"
    path.write_text(json.dumps(recorded()))
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "200"})


# ---------------------------------------------------------------- numbers


def test_blocks_of_a_row_are_merged_and_compared_with_their_peer(timings):
    report = results.load(timings)
    e3nn, ours = report.rows[:2]
    assert (e3nn.median, e3nn.min, e3nn.rounds) == (8.5, 4.0, 4)
    assert (ours.median, ours.min, ours.rounds) == (1.5, 0.5, 4)
    assert (ours.gflops, ours.gbs, ours.note) == (8.0, 4.0, "5 <nodes>")
    assert ours.of_roofline(ENVIRONMENT["peaks"]) == 4.0 / 20.0  # by memory; 0.08 by arithmetic
    pair = results.pairs(report.rows)[0]
    assert pair == (ours, e3nn) and (pair.medians, pair.mins) == (8.5 / 1.5, 8.0)
    assert len(report.rows) == 10 and len(results.pairs(report.rows)) == 5


def test_every_row_of_fastmlip_meets_every_peer_of_its_group():
    group = [benchmark(w, [1.0]) for w in ("NequIP", "NequIP AOTI", "fastmlip", "fastmlip AOTI")]
    found = [(p.ours.who, p.peer.who) for p in results.pairs(results.collect(group))]
    assert len(found) == len(set(found)) == 4
    assert results.pairs(results.collect(group[:2])) == []


def test_a_run_ends_in_one_table_of_ratios_by_operator_and_model(timings):
    lines = summary.text(results.load(timings))
    at = lines.index("")
    memory, ratios = lines[:at], lines[at + 1 : -1]
    assert len(memory) == 3 and re.search(r"NequIP M peak .* 800 MiB +200 MiB +4\.0$", memory[2])
    assert ratios[0].split()[:4] == ["operator", "model", "timed", "peer"]
    assert "form" not in ratios[0]
    # 100, 1,000 and 10,000 edges: (5.67 * 4 * 4) ** (1 / 3), (8 * 4 * 4) ** (1 / 3)
    conv = r"conv +S +forward +e3nn +8\.5 s to 800 s +1\.5 s to 200 s +4\.5 +5\.0$"
    assert re.match(conv, ratios[2])
    assert re.match(r"zbl +oxides +double backward +NequIP +3 s +6 s +0\.50 +0\.50$", ratios[3])
    assert len(ratios) == 4


def test_forms_of_fastmlip_and_rows_without_a_peer_are_told_apart():
    group = [benchmark(w, [4.0]) for w in ("NequIP", "fastmlip exact", "fastmlip tabulated")]
    alone = benchmark("fastmlip", [1.0], what="scaling", note="2 us an atom")
    lines = summary.text(results.Report(ENVIRONMENT, results.collect([*group, alone])))
    assert lines[0] == "conv S 100 edges scaling  2 us an atom"
    assert lines[1].split()[4] == "form"
    assert [line.split()[4] for line in lines[3:5]] == ["exact", "tabulated"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(3521.93, "3500"), (56.7, "57"), (5.67, "5.7"), (9.96, "10"), (1.0, "1.0"), (0.567, "0.57"),
     (0.0567, "0.057"), (99.6, "100"), (0.0, "0")],
)  # fmt: skip
def test_ratios_have_two_digits(value, text):
    assert results.ratio(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2 s"), (0.0123, "12.3 ms"), (4.5e-6, "4.5 us"), (1e-9, "0.001 us"), (0.0, "0 us")],
)
def test_durations_have_units(seconds, text):
    assert results.duration(seconds) == text


# ---------------------------------------------------------------- the report


def test_a_report_is_one_page_with_images_and_says_where_it_was_made(timings, tmp_path):
    out = tmp_path / "out"
    result = invoke("--from", timings, "--report", out)
    assert result.exit_code == 0, result.output
    page = (out / "index.html").read_text()
    images = re.findall(r'<img [^>]*src="(.{30})', page)
    assert len(images) == 4  # two ratios, one scaling, one roofline
    assert all(image.startswith("data:image/png;base64,iVBOR") for image in images)
    assert not re.search(r"(src|href)=\"?(http|/|\w+\.)", page), "nothing is loaded"
    assert "not to be quoted" not in page
    assert "a &lt;processor&gt;" in page and "5 &lt;nodes&gt;" in page
    for text in (
        "0123abc+", "2026-01-02", "2 threads", "2.13.0", ">5.7<", "800 MiB", "copy GB/s", "20 %",
    ):  # fmt: skip
        assert text in page, text
    conv, zbl = page.split("<h3>")[1:]  # columns that a table would leave empty are not there
    assert conv.count("<th>GFLOP/s</th>") == 1 and "of the roofline" in conv
    assert not re.search("size</th>.*GFLOP", zbl.split("</table>")[0], re.S)
    assert "<th>GB/s</th>" not in zbl and "roofline" not in zbl.split("</table>")[0]
    again = results.load(out)
    assert again.rows == results.load(timings).rows
    assert again.environment == ENVIRONMENT
    with (out / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10
    first = lines[1]
    assert (first["who"], first["min"], first["gflops"]) == ("fastmlip", "0.5", "8.0")
    assert (first["commit"], first["torch version"], first["copy GB/s"]) == (
        "0123abc+", "2.13.0", "20.0",
    )  # fmt: skip


def test_a_report_of_one_peerless_row_has_no_figure_and_no_ratio(tmp_path):
    path = tmp_path / "timings.json"
    content = {**recorded(), "benchmarks": [benchmark("fastmlip", [1.0])]}
    content["fastmlip"]["load before"] = 3.5
    path.write_text(json.dumps(content))
    assert invoke("--from", path, "--report", tmp_path / "out").exit_code == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<img" not in page
    assert "load average was 3.5" in page and "not to be quoted" in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a results.json"),
        ('{"benchmarks": []}', "expected a results.json"),
        (None, "No such file"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, content, message):
    path = tmp_path / "timings.json"
    if content is not None:
        path.write_text(content)
    result = invoke("--from", path)
    assert result.exit_code == 1 and message in result.output


# ---------------------------------------------------------------- two reports


def changed(tmp_path, change, name="after.json"):
    content = recorded()
    change(content)
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


def scale(content, factor, ours=True, first=0):
    for row in content["benchmarks"]:
        if (row["extra_info"]["who"] == "fastmlip") is ours:
            times = row["stats"]["data"]
            times[first:] = [factor * time for time in times[first:]]


def test_a_report_is_as_fast_as_itself(timings):
    result = invoke("--compare", timings, timings)
    assert result.exit_code == 0 and "0 rows slower by more than 20%" in result.output


def test_slower_rows_give_an_exit_status(timings, tmp_path):
    slow = changed(tmp_path, lambda content: scale(content, 1.3))
    result = invoke("--compare", timings, slow)
    assert result.exit_code == 1 and "5 rows slower by more than 20%" in result.output
    assert invoke("--compare", timings, slow, "--tolerance", 0.31).exit_code == 0
    back = invoke("--compare", slow, timings)
    assert back.exit_code == 0 and back.output.count("faster") == 5


def test_neither_peers_nor_one_statistic_alone_make_a_row_slower(timings, tmp_path):
    noise = changed(tmp_path, lambda content: scale(content, 9.0, first=1))
    assert invoke("--compare", timings, noise).exit_code == 0  # medians only
    peers = changed(tmp_path, lambda content: scale(content, 2.0, ours=False))
    result = invoke("--compare", timings, peers)
    assert result.exit_code == 0 and "2.00 times as long" in result.output


def test_a_comparison_says_what_else_differs(timings, tmp_path):
    def change(content):
        content["benchmarks"] = content["benchmarks"][:-1]
        content["fastmlip"]["threads"] = 8
        content["fastmlip"]["versions"]["torch"] = "2.12.0"

    result = invoke("--compare", timings, changed(tmp_path, change))
    assert result.exit_code == 0
    assert "not the same: threads: 2, 8" in result.output
    assert "not the same: torch: 2.13.0, 2.12.0" in result.output
    assert "only before: conv S 10,000 edges forward, fastmlip" in result.output


def test_a_busy_machine_and_missing_rows_are_said_but_not_at_length(timings, tmp_path):
    def change(content):
        content["benchmarks"] = content["benchmarks"][:2]
        content["fastmlip"]["load before"] = 3.5

    result = invoke("--compare", timings, changed(tmp_path, change))
    assert result.output.count("only before") == 6 and "only before: 3 more" in result.output
    assert "after: Other processes were at work: the load average was 3.5" in result.output
    assert "before: Other processes" not in result.output


def test_reports_without_a_common_row_cannot_be_compared(timings, tmp_path):
    def change(content):
        for row in content["benchmarks"]:
            row["extra_info"]["case"] = "other"

    result = invoke("--compare", timings, changed(tmp_path, change))
    assert result.exit_code == 1 and "no row of fastmlip in common" in result.output
    assert invoke("--compare", timings, timings, "--from", timings).exit_code == 2


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

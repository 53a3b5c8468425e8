"""The benchmarks' report: numbers, files, comparison; what a row times. No time is asserted."""

import copy
import csv
import json
import re

import pytest
from typer.testing import CliRunner

from fastmlip.bench import results, summary
from fastmlip.cli import app

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

"""``fastmlip gpu-report --model``: what it counts, and that its model of time is what it says."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from fastmlip import backend, ops
from fastmlip.cli import app
from fastmlip.gpu import gpus, latency, operators
from fastmlip.gpu.rounds import Program, Walk, _amd_rounds, _items, _nvidia_rounds
from fastmlip.nn import TensorProductConv
from fastmlip.testing import OPERATORS

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(backend.interpreting(), reason="the interpreter compiles nothing")

from fastmlip.gpu import passes  # noqa: E402
from fastmlip.gpu.trace import trace  # noqa: E402

H100 = gpus.GPUS["H100"]

# ---------------------------------------------------------------- rounds of memory

A = "LDG.E R4, desc[UR4][R2.64]"
LOAD = "global_load_dword v1, v[2:3], off"
BLOCKS = "%c = arith.constant 32 : i64\nscf.for %i = %a to %b step %c "
B = "LDG.E.64 R6, desc[UR4][R2.64+0x8]"


@pytest.mark.parametrize(
    ("lines", "rounds"),
    [
        ([A, B, "FADD R8, R4, R6"], 1),
        ([A, "FADD R8, R4, RZ", B, "FADD R8, R7, RZ"], 2),  # the second came after the first's use
        ([A, "LEA R10, P0, R4, R12, 0x2", "LDG.E R5, desc[UR4][R10.64]", "FADD R8, R5, R5"], 2),
        ([A, B], 1),  # someone waits in the end
        (["FADD R8, R4, R6", "STG.E desc[UR4][R2.64], R8"], 0),
        (["@!P0 " + A, "@P0 LDG.E R4, desc[UR4][R8.64]", "FADD R1, R4, R4"], 1),
    ],
)  # fmt: skip
def test_rounds_of_nvidia_code(lines, rounds):
    assert _nvidia_rounds(lines) == rounds


@pytest.mark.parametrize(
    ("lines", "rounds"),
    [
        ([LOAD] * 2 + ["s_waitcnt vmcnt(0)"], 1),
        ([LOAD] * 2 + ["s_waitcnt vmcnt(1)", "s_waitcnt vmcnt(0)"], 2),
        (["s_load_dword s1, s[2:3], 0x0", "s_waitcnt lgkmcnt(0)", "s_waitcnt lgkmcnt(0)"], 1),
        (["ds_read_b32 v1, v2", "s_waitcnt lgkmcnt(0)"], 0),
    ],
)  # fmt: skip
def test_rounds_of_amd_code(lines, rounds):
    assert _amd_rounds(lines) == rounds


@pytest.mark.parametrize(
    ("line", "ttir", "items"),
    [
        ("IADD3 R31, P1, R31, -0x4, RZ", "", 4),
        ("IADD3 R2, P3, R2, 0x8, RZ", "", 1),  # an address
        ("IADD3 R2, P3, R2, 0x80, RZ", BLOCKS, 128),
        ("IADD3 R2, P3, R2, 0x20, RZ", BLOCKS, 32),
    ],
)  # fmt: skip
def test_edges_of_a_pass(line, ttir, items):
    assert _items([line], ttir) == items


# ---------------------------------------------------------------- the model of time


@pytest.fixture
def code(monkeypatch):
    """A program of one warp that waits once, and once more for each edge."""
    body = Program(Walk(10, 1, 0), Walk(20, 1, 8), 1)
    monkeypatch.setattr(latency, "program", lambda code: body)
    return SimpleNamespace(num_warps=1, occupancy=0.5)  # 32 programs of 64 warps


def test_latency_counts_waves_and_edges(code):
    resident = 32 * H100.processors
    one = latency.launch(code, H100, resident, 40, 0.0, False)
    assert one.bound == "latency" and one.seconds == pytest.approx(41 * 600 / H100.clock)
    two = latency.launch(code, H100, resident + 1, 40, 0.0, False)
    assert two.latency == pytest.approx(2 * one.latency)
    assert latency.launch(code, H100, 0, 40, 0.0, False).seconds == 0


def test_the_longest_of_four_is_the_time(code):
    found = latency.launch(code, H100, 7, 40, 3.35e12, False)
    assert found.bound == "memory" and found.seconds == pytest.approx(1.0)
    assert found.issue == pytest.approx(7 * 810 / (4 * H100.processors * H100.clock))
    assert found.arithmetic == pytest.approx(7 * 32 * 320 / 67e12)
    double = latency.launch(code, H100, 7, 40, 0.0, True)
    assert double.arithmetic == pytest.approx(7 * 32 * 320 / 34e12)


def test_clocks_are_those_of_the_parts():
    """The vendors' boost clocks, in GHz."""
    clocks = {"A100": 1.41, "H100": 1.98, "H200": 1.98, "B200": 1.98, "MI300X": 2.1}
    assert {n: round(g.clock / 1e9, 2) for n, g in gpus.GPUS.items()} == clocks


# ---------------------------------------------------------------- what is counted


def work(function, *shapes):
    found = trace(lambda data: function(*data.values()), {str(n): t for n, t in enumerate(shapes)})
    return [one.work for one in found.launches]


def test_work_of_torch_operators():
    x, index = torch.zeros(1000, 8), torch.zeros(10, dtype=torch.int64)
    (added,) = work(lambda x: x + x, x)
    assert added == operators.Work(1, 2 * 32000, 8000, 1, False)
    (rows,) = work(lambda x, i: x[i], x, index)
    assert rows.nbytes == 2 * 320 + 80 and rows.rounds == 2
    (product,) = work(lambda x: x.T @ x, x)
    assert product.flops == 2 * 8 * 8 * 1000 and product.nbytes == 32000 + 256
    (wide,) = work(lambda x: x[:1].expand(1000, 8) * 2, x)
    assert wide.nbytes == 32000 + 32000  # of a view, at most the memory behind it
    assert work(lambda x: x.view(8, 1000).t()[1:], x) == []
    assert [w.launches for w in work(lambda x: x.double().sort()[0], x)] == [1, 6]


def test_a_trace_has_the_launches_of_the_kernels():
    """All of a forward and a backward pass, in the number that their launchers make."""
    case = OPERATORS["tensor_product_conv"].cases["nequip-S-hidden"]
    problem, edges = case.problem, 300
    conv = TensorProductConv(*case.arguments())
    data = {
        "x": torch.zeros(7, problem.dim_in1), "a": torch.zeros(edges, problem.dim_in2),
        "w": torch.zeros(edges, problem.weight_numel),
        "dst": torch.zeros(edges, dtype=torch.int64), "src": torch.zeros(edges, dtype=torch.int64),
    }  # fmt: skip

    def run(data):
        leaves = [data[key].requires_grad_() for key in "xaw"]
        out = conv(*leaves, data["dst"], data["src"])
        return torch.autograd.grad(out.sum(), leaves)

    found = trace(run, data)
    ours = [one for one in found.launches if one.call is not None]
    forward, backward = passes.passes("tensor_product_conv", "nequip-S-hidden")[:2]
    expected = [call.kernel.__name__ for one in (forward, backward) for call in one.calls]
    assert [one.call.kernel.__name__ for one in ours] == expected
    assert found.custom_calls == 2
    assert {one.operator for one in ours} == {
        "fastmlip::tensor_product_conv", "fastmlip::tensor_product_conv_backward"
    }  # fmt: skip
    # operands and results of a pass once, and what is packed twice
    first = sum(one.work.nbytes for one in ours if one.operator == "fastmlip::tensor_product_conv")
    once = sum(data[key].numel() * 4 for key in "xaw") + 7 * problem.dim_out * 4
    packed, index = 7 * problem.dim_in1 * 4, 8 * (8 + 2 * edges)
    assert first == pytest.approx(once + 2 * packed + index)


def test_what_runs_on_a_cpu_alone_is_refused():
    with pytest.raises(RuntimeError, match="edge_order_cpu ran"):
        trace(lambda d: torch.ops.fastmlip.edge_order_cpu(d["i"], d["i"], 3, None),
              {"i": torch.zeros(4, dtype=torch.int64)})  # fmt: skip


def test_a_model_that_asks_for_numbers_is_refused():
    """As the host of SevenNet's models does, which counts atoms of frames."""
    for ask in (lambda d: d["i"].bincount(), lambda d: d["i"].sum().item()):
        with pytest.raises(ValueError, match="asks for numbers"):
            trace(ask, {"i": torch.zeros(4, dtype=torch.int64)})


def test_the_branch_of_a_gpu_ends_with_the_block():
    x = torch.zeros(1)
    with backend.as_on_gpu():
        assert backend.choose(x) == "triton"
    assert backend.choose(x) in ("cpp", "reference")
    assert ops.edge_order(torch.zeros(2).long(), torch.zeros(2).long(), 1).shape == (14,)


# ---------------------------------------------------------------- the command


def run(*arguments):
    return CliRunner().invoke(app, ["gpu-report", *arguments], env={"COLUMNS": "120"})


def test_a_whole_model(monkeypatch, tmp_path):
    from fastmlip.gpu import forms

    real = forms.forms  # tables take a minute
    kept = (forms.STOCK, forms.PRODUCT, forms.EXACT)
    monkeypatch.setattr(forms, "forms", lambda host: zip_first(real(host), kept))
    out = tmp_path / "report.json"
    done = run("--model", "NequIP-S", "--gpu", "H100", "--atoms", "32", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "modelled" in done.output and "none is measured" in done.output
    content = json.loads(out.read_text())
    rows = {(r["call"], r["form"]): r for r in content["rows"]}
    assert [key[1] for key in rows] == [*kept, *kept]
    for what in forms.CALLS:
        mine = [rows[what, form] for form in kept]
        assert mine[0]["launches"] > mine[1]["launches"] > mine[2]["launches"] > 50
        assert mine[0]["nbytes"] > mine[1]["nbytes"] > mine[2]["nbytes"]
    for row in content["rows"]:
        assert row["error"] == "" and 0 < row["kernels"] < row["with_graph"] < row["eager"]
        assert sum(line["launches"] for line in row["lines"]) == row["launches"]
        assert sum(line["seconds"] for line in row["lines"]) == pytest.approx(row["kernels"])
        gaps = content["assumed"]["GAP_GRAPH"] * row["launches"]
        assert row["with_graph"] == pytest.approx(row["kernels"] + gaps)
    names = {line["name"] for line in rows[forms.CALLS[1], forms.EXACT]["lines"]}
    assert {"tensor_product_conv_fwd", "tensor_product_conv_bwd", "edge_embedding"} <= names


def zip_first(found, kept):
    for _ in kept:
        yield next(found)


def test_a_kernel_that_does_not_compile_is_said(monkeypatch):
    from fastmlip.gpu import forms, model_report

    def fails(call, target):
        raise RuntimeError("no such type")

    real = forms.forms
    kept = (forms.STOCK, forms.PRODUCT)
    monkeypatch.setattr(forms, "forms", lambda host: zip_first(real(host), kept))
    monkeypatch.setattr(model_report, "compiled", fails)
    done = run("--model", "NequIP-S", "--gpu", "A100", "--atoms", "32")
    assert done.exit_code == 1
    assert (
        "tensor product alone on A100: tensor_product_conv_fwd: RuntimeError: no such type"
        in done.output
    )
    (stock,) = [x for x in done.output.splitlines() if x.startswith("A100 stock")][:1]
    assert " - " not in stock


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "NequIP-Q"], "NequIP-Q"), (["--model", "NequIP-S", "--gpu", "H13"], "H13"),
        (["--model", "NequIP-S", "--atoms", "100"], "4 n^3"),
        (["--model", "NequIP-S", "--target", "sm_90"], "none of"), (["--gpu", "H100"], "--model"),
        (["--model", "NequIP-S", "--out", "report.csv"], "report.csv"),
    ],
)  # fmt: skip
def test_bad_options(arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2 and words in done.output


def test_modelled_numbers_are_numbers():
    assert all(math.isfinite(v) for g in gpus.GPUS.values() for v in (g.clock, g.round))
    assert dataclasses.replace(H100, processors=66).clock == 2 * H100.clock

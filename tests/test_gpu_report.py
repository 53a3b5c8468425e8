"""``fastmlip gpu-report``: it reads compiled code aright, and it fails where it should."""

import csv
import json

import pytest
import torch
from typer.testing import CliRunner

from fastmlip import backend
from fastmlip.cli import app
from fastmlip.gpu.targets import TARGETS

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(backend.interpreting(), reason="the interpreter compiles nothing")
import triton.language as tl  # noqa: E402

from fastmlip.gpu import code as code_module  # noqa: E402
from fastmlip.gpu import passes, report  # noqa: E402
from fastmlip.gpu.code import Code, compiled  # noqa: E402
from fastmlip.kernels._run import Call  # noqa: E402

QUICK = ["gpu-report", "--operator", "scale_shift", "--target", "sm_90"]


def run(*arguments):
    return CliRunner().invoke(app, [*QUICK, *arguments], env={"COLUMNS": "200"})


# ---------------------------------------------------------------- the command


def test_table_and_json(tmp_path):
    done = run("--target", "gfx942", "--out", str(tmp_path / "report.json"))
    assert done.exit_code == 0, done.output
    assert "modelled as H100" in done.output and "modelled as MI300X" in done.output
    assert "not a measurement" in done.output
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["versions"]["triton"] == triton.__version__
    assert [(r["target"], r["order"]) for r in content["rows"]] == [
        (target, order)
        for target in ("sm_90", "gfx942")
        for order in ("forward", "backward", "sums")
    ]
    for r in content["rows"]:
        assert r["spilled"] == r["atomics"] == 0 and r["registers"] > 8
        assert r["instructions"]["store"] > 0
    forward = content["rows"][0]
    assert forward["bytes_per_edge"] == 4 + 8 + 8 and forward["flops_per_edge"] == 2
    assert forward["model_seconds_per_edge"] == pytest.approx(20 / 3.35e12)


def test_tables_are_whole_in_80_columns():
    done = CliRunner().invoke(app, QUICK, env={"COLUMNS": "80"})
    assert done.exit_code == 0 and "\N{HORIZONTAL ELLIPSIS}" not in done.output
    assert all(heading in done.output for heading in ("model ns/edge", "FLOP/edge", "shuffle"))


def test_csv(tmp_path):
    assert run("--out", str(tmp_path / "report.csv")).exit_code == 0
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert len(rows) == 3 and rows[0]["triton"] == triton.__version__
    assert int(rows[0]["instructions_load"]) > 0


@pytest.mark.parametrize(
    ("name", "words"), [("spilled", "16 bytes spilled"), ("atomics", "16 atom")]
)
def test_spills_and_atomics_give_exit_status_1(monkeypatch, name, words):
    monkeypatch.setattr(Code, name, 16)
    done = run()
    assert done.exit_code == 1 and words in done.output


def test_a_kernel_that_does_not_compile_is_a_row(monkeypatch, tmp_path):
    made = []

    def some(call, target):
        made.append(call)
        if len(made) == 2:
            raise RuntimeError("while compiling\nsources\nno such type") from None
        return compiled(call, target)

    monkeypatch.setattr(report, "compiled", some)
    done = run("--out", str(tmp_path / "report.json"))
    assert done.exit_code == 1, done.output
    words = "scale_shift per type backward on sm_90: does not compile: RuntimeError: no such type"
    assert words in done.output
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [r["error"] for r in rows] == ["", "RuntimeError: no such type", ""]
    assert [r["registers"] is None for r in rows] == [False, True, False]
    assert rows[1]["launches"] == 1 and rows[1]["instructions"]["load"] is None
    (line,) = [
        line.split() for line in done.output.splitlines() if line.split()[:2] == ["backward", "1"]
    ]
    assert line[2:6] == ["-"] * 4 and float(line[6]) > 0, line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--target", "sm_13"], "sm_13"), (["--operator", "conv"], "conv"),
     (["--out", "report.txt"], "report.txt")],
)  # fmt: skip
def test_bad_options(arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2 and words in done.output


def test_without_triton(monkeypatch):
    monkeypatch.setattr(backend, "load_triton", lambda: "Triton does not load: it is broken")
    done = run()
    assert done.exit_code == 1
    assert "Triton does not load: it is broken" in done.output
    assert "pip install triton" in done.output


def test_under_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = run()
    assert done.exit_code == 1 and "unset it" in done.output


# ---------------------------------------------------------------- what it reads from code


@triton.jit
def _adds_atomically(out, x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(out + i, tl.load(x + i))


@triton.jit
def _holds_too_much(out, x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    values = tl.load(x + i)
    tl.store(out + i, values / tl.sum(tl.exp(values)))


def bad(kernel, block, target):
    operands = tuple(torch.empty(block, device="meta") for _ in "ab")
    return compiled(Call(kernel, (1,), operands, {"BLOCK": block}, 32), TARGETS[target])


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_atomics_are_counted(target):
    code = bad(_adds_atomically, 32, target)
    assert code.atomics > 0 and code.instructions["atomic"] > 0 and code.spilled == 0


def test_spills_are_counted():
    code = bad(_holds_too_much, 256 * 32, "sm_90")
    assert code.spilled > 0 and code.instructions["local"] > 0 and code.atomics == 0


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_edge_loop_is_found(target):
    """A path of l = 0 reads an edge's number, its sender, x, edge_attr and edge_weight."""
    first = passes.passes("tensor_product_conv", "nequip-S-first")[0]
    code = compiled(first.calls[0], TARGETS[target])
    paths = sum(len(paths) for *_, paths in first.calls[0].constants["TABLE"])
    assert code.loop["store"] == 0 < code.instructions["store"]
    assert paths <= code.loop["fma"] + code.loop["float"] < sum(code.instructions.values())
    assert 3 <= code.loop["load"] <= code.instructions["load"]


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("FFMA R1, R2, R3, R4", "fma"), ("@!P0 LDG.E.64 R2, desc[UR4][R2.64]", "load"),
        ("STG.E desc[UR4][R2.64], R5", "store"), ("FMUL2 R2, R4, R6", "float"),
        ("RED.E.ADD.F32 desc[UR4][R2.64], R5", "atomic"), ("ATOMG.E.ADD R1, [R2], R3", "atomic"),
        ("LDL R1, [R2]", "local"), ("LDS R1, [R2]", "shared"), ("SHFL.BFLY PT, R1", "shuffle"),
        ("LDC R1, c[0x0][0x28]", "other"), ("IMAD R1, R2, R3, R4", "other"), ("EXIT", "branch"),
        ("v_fma_f32 v0, v1, v2, v3", "fma"), ("v_pk_fma_f32 v[0:1], v[2:3]", "fma"),
        ("global_load_dword v1, v[2:3], off", "load"), ("v_mul_f64 v[0:1], v[2:3]", "float"),
        ("global_store_dword v[0:1], v2, off", "store"), ("scratch_load_dword v1", "local"),
        ("global_atomic_add_f32 v0, v1, s[0:1]", "atomic"), ("s_mov_b32 s0, s1", "other"),
    ],
)  # fmt: skip
def test_instructions_have_their_kind(instruction, kind):
    assert code_module.kind(instruction) == kind
    assert set(code_module.KINDS) < set(code_module.KIND_NAMES)


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "occupancy"),
    [
        ("sm_90", 32, 0, 4, 1.0),  # 64 warps of 32 registers are the whole file
        ("sm_90", 32, 0, 1, 0.5),  # 32 programs
        ("sm_90", 33, 0, 4, 0.75),  # 40 registers: 12 warps a scheduler
        ("sm_80", 255, 0, 1, 8 / 64),
        ("sm_80", 40, 100 * 1024, 4, 4 / 64),  # shared memory for one program
        ("sm_120", 80, 0, 1, 24 / 48),
        ("gfx942", 64, 0, 1, 1.0),
        ("gfx942", 65, 0, 1, 28 / 32),
        ("gfx90a", 512, 0, 1, 4 / 32),
    ],
)
def test_occupancy(target, registers, shared, warps, occupancy):
    assert TARGETS[target].occupancy(registers, shared, warps) == pytest.approx(occupancy)


def test_the_roofline_is_the_longer_of_the_two():
    peak = TARGETS["sm_80"].peak
    assert peak.seconds(2.039e12, 1.0, True) == pytest.approx(1.0)
    assert peak.seconds(1.0, 19.5e12, False) == pytest.approx(1.0)
    assert peak.seconds(1.0, 9.7e12, True) == pytest.approx(1.0)


def test_the_work_of_one_path():
    """Per edge M = c a, w x and M (w x), of which all but w x are sums too."""
    from fastmlip.testing import OPERATORS

    problem = OPERATORS["tensor_product_conv"].cases["nequip-S-first"].problem
    forward = passes.passes("tensor_product_conv", "nequip-S-first")[0]
    node = (problem.dim_in1 + problem.dim_out) * 4 + 8
    edge = (problem.dim_in2 + problem.weight_numel) * 4 + 16
    assert forward.nbytes == edge + node / passes.EDGES_PER_NODE
    # 32x0e with 0e and 1o: 1 and 3 coefficients, as many (m1, m3)
    assert forward.flops == 2 * 4 + 32 * (1 + 2 * 1) + 32 * (1 + 2 * 3)

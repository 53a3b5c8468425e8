"""``fastmlip gpu-check``, the steps of ``make gpu``: on a CPU, and failing where they should."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from fastmlip.bench import gpu_check, gpu_ready, gpu_steps, results
from fastmlip.cli import app

QUICK = ("machine", "suite", "parity-S", "operators", "models-S")


def run(*arguments):
    return CliRunner().invoke(app, ["gpu-check", *arguments], env={"COLUMNS": "200"})


def steps(names):
    return [word for name in names for word in ("--step", name)]


# ---------------------------------------------------------------- the steps, on a CPU


def test_the_steps(tmp_path):
    done = run("--device", "cpu", "--small", "--out", str(tmp_path / "report"), *steps(QUICK))
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "report/results.json").read_text())
    found = {step["name"]: step for step in content["environment"]["steps"]}
    assert tuple(found) == QUICK and not any(step["failed"] for step in found.values())
    kinds = {check["name"].rpartition(": ")[2] for check in found["parity-S"]["checks"]}
    assert kinds == {"energy", "forces", "gradient"}
    dtypes = {check["name"].split()[2] for check in found["parity-S"]["checks"]}
    assert dtypes == {"float32", "float64"}
    assert all(0 <= c["error"] <= c["tolerance"] for c in found["parity-S"]["checks"])
    assert any("zbl" in check["name"] for check in found["suite"]["checks"])
    report = results.load(tmp_path / "report")
    who = {(row.operator, row.who) for row in report.rows}
    assert who >= {
        ("tensor_product_conv", "e3nn"), ("tensor_product_conv", "fastmlip"),
        ("whole model", "NequIP"), ("whole model", "fastmlip exact"),
    }  # fmt: skip
    assert report.environment["peaks"][results.COPY] > 0
    page = (tmp_path / "report/index.html").read_text()
    assert "parity-S" in page and "Roofline" in page
    lines = done.output.splitlines()
    table = next(n for n, line in enumerate(lines) if "seconds" in line and "found" in line)
    assert all(any(name in line for line in lines[table:]) for name in QUICK)  # it is the last


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in gpu_check.LIMITS if name not in QUICK])
def test_every_other_step(name, tmp_path):
    _, (outcome,) = gpu_check.run("cpu", tmp_path, small=True, names=[name], budget=1e4)
    assert outcome.status == gpu_check.PASSED, outcome.text


def test_every_step_has_a_limit_and_code():
    assert set(gpu_check.LIMITS) == {*gpu_steps.STEPS, "suite"}
    needed = [v for name, v in gpu_check.LIMITS.items() if name not in gpu_check.OPTIONAL]
    assert gpu_check.BUDGET < 8 * 60 and len(needed) == len(gpu_check.LIMITS) - 1


def test_wrong_forces_are_a_failed_check(tmp_path, monkeypatch):
    """The step compares, and with stock."""
    from fastmlip.gpu import forms

    call = forms.call

    def wrong(host, model, what):
        function = call(host, model, what)
        if model is host.model:
            return function
        return lambda data: [value * 1.001 for value in function(data)]

    monkeypatch.setattr(forms, "call", wrong)
    step = gpu_steps.Step("cpu", tmp_path / "found", small=True, seconds=1.0)
    gpu_steps.parity(step, "S")
    checks = [json.loads(line) for line in (tmp_path / "found").read_text().splitlines()]
    assert len(checks) == 12 and not any(c["passed"] for c in checks)


def test_not_a_number_is_no_small_error(tmp_path):
    step = gpu_steps.Step("cpu", tmp_path / "found", small=True, seconds=1.0)
    step.check("nan", float("nan"), 1.0)
    step.check("good", 0.5, 1.0)
    lines = (tmp_path / "found").read_text().splitlines()
    assert [json.loads(line)["passed"] for line in lines] == [False, True]


# ---------------------------------------------------------------- limits and failures


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(code)``: what the process of a step runs; it has ``say(**line)``."""

    def make(code):
        head = """
            import json, os, subprocess, sys, time
            out = [a for a in sys.argv if a.startswith("--out=")][0][6:]
            def say(**line):
                with open(out, "a") as file:
                    file.write(json.dumps(line) + "\\n")
        """
        text = textwrap.dedent(head) + textwrap.dedent(code)
        (tmp_path / "fake_steps.py").write_text(text)
        monkeypatch.setattr(gpu_check, "STEPS", "fake_steps")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    return make


GOOD = 'say(kind="check", name="one", error=0.0, tolerance=1.0, passed=True, why="")\n'
BAD = 'say(kind="check", name="two", error=2.0, tolerance=1.0, passed=False, why="")\n'


def outcome_of(tmp_path, limit=60.0):
    return gpu_check._step("machine", "cpu", tmp_path, False, limit)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (GOOD, "passed", "1 of 1 checks passed"), (BAD, "failed", "failed: two"),
        ("pass", "failed", "nothing was checked"),
        (GOOD + "raise ValueError('broken')", "failed", "ValueError: broken"),
        (GOOD + "os.kill(os.getpid(), 11)", "failed", "exit status -11"),
        ('say(kind="left out", name="peer", why="")', "failed", "nothing was checked"),
    ],
)  # fmt: skip
def test_what_a_step_can_come_to(module, tmp_path, code, status, words):
    module(code)
    outcome = outcome_of(tmp_path)
    assert outcome.status == status and words in outcome.text


def test_a_step_that_hangs_is_stopped_with_what_it_started(module, tmp_path):
    """What it found is kept, and the next step runs."""
    pid = tmp_path / "pid"
    module(
        GOOD
        + f"""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pid)!r}, "w").write(str(child.pid))
time.sleep(600)
"""
    )
    start = time.perf_counter()
    outcome = outcome_of(tmp_path, limit=4.0)
    assert time.perf_counter() - start < 30
    assert outcome.failed and "stopped after 4 s" in outcome.text
    assert [check["name"] for check in outcome.checks] == ["one"]
    time.sleep(0.2)
    state = Path(f"/proc/{pid.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_time_that_is_used_up(module, tmp_path):
    module("time.sleep(3)\n" + GOOD)
    names = ["machine", "parity-S", "compiled-S"]
    _, outcomes = gpu_check.run("cpu", tmp_path, budget=gpu_check.SHORTEST + 2, names=names)
    assert [o.status for o in outcomes] == ["passed", "not run", "not run"]
    assert [o.failed for o in outcomes] == [False, True, False]  # the last is optional


def test_a_failed_step_is_a_row_and_the_exit_status(module, tmp_path):
    module(BAD)
    done = run("--device", "cpu", "--out", str(tmp_path / "r"), *steps(["machine", "parity-S"]))
    assert done.exit_code == 1 and "failed: two" in done.output
    page = (tmp_path / "r/index.html").read_text()
    assert page.count('<tr class="slower"><td>two</td>') == 2
    assert results.load(tmp_path / "r").environment["steps"][0]["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--device", "tpu"], "tpu"), (["--device", "cpu", "--step", "all"], "parity-S")],
)
def test_bad_options(arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2 and words in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    done = run()
    assert done.exit_code == 2 and "sees no GPU" in done.output


# ---------------------------------------------------------------- timing by events, and graphs


def test_times_are_those_of_events(tmp_path, monkeypatch):
    """Events count milliseconds, and are waited for."""
    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("record")

        def synchronize(self):
            said.append("wait")

        def elapsed_time(self, end):
            return 1500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert gpu_steps._once(lambda: said.append("call"), "cuda") == 1.5
    assert said == ["record", "call", "record", "wait"]


def test_a_graph_is_captured_after_a_warm_up(monkeypatch):
    calls, replays = [], []

    class Stream:
        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def within(what):
        calls.append(type(what).__name__)
        yield

    class CUDAGraph:
        def replay(self):
            replays.append(1)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "graph", within)
    replay = gpu_steps.replayed(lambda: calls.append("call") or 7)
    assert calls == ["Stream", *["call"] * gpu_steps.WARM_UP, "CUDAGraph", "call"]
    assert replay() == 7 and replays == [1]


# ---------------------------------------------------------------- make gpu


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [("torch", "2.10.1+cu128", "torch 2.11"), ("triton", "3.5.0", "triton 3.6")],
)
def test_an_old_torch_or_triton_is_refused_first(monkeypatch, name, version, words):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))
    assert gpu_ready.objection("cpu") == ""
    monkeypatch.setattr(sys.modules[name], "__version__", version)
    assert words in gpu_ready.objection("cpu") and version in gpu_ready.objection("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_make_gpu_begins_with_a_look():
    root = Path(__file__).parent.parent
    command = ["make", "-C", str(root), "gpu", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "make gpu: " in done.stderr and not (root / "gpu_report").exists()

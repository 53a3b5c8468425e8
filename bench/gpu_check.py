"""``fastmlip gpu-check``: everything worth knowing of fastmlip on a GPU, within eight minutes.

Each step is a process of its own under a limit of its own, so a kernel that hangs costs one step.
What a stopped step had found by then is kept. A step that checked and timed nothing has failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from .environment import machine, versions
from .results import Report, Row
from .run import DONE

STEPS = "fastmlip.bench.gpu_steps"  # the module that runs one
BUDGET = 465.0  # seconds of all steps together
SHORTEST = 10.0  # a step with less time left is not begun
TESTS = Path(__file__).resolve().parent.parent / "tests"
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
# seconds, in the order that they run in; what runs last is left out first
LIMITS = {
    "machine": 40.0, "parity-S": 50.0, "parity-M": 75.0, "parity-L": 90.0, "models-S": 40.0,
    "models-M": 50.0, "models-L": 60.0, "operators": 60.0, "suite": 150.0, "compiled-S": 120.0,
}  # fmt: skip
OPTIONAL = ("compiled-S",)  # if time is left
# of the suite: one case of each operator, compiled graphs, sizes, bits, streams and CUDA graphs
SUITE = ["test_operators.py"]


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    status: str
    seconds: float = 0.0
    limit: float = 0.0
    why: str = ""
    checks: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.status != PASSED and not (self.status == NOT_RUN and self.name in OPTIONAL)

    @property
    def text(self) -> str:
        """What it found, in a few words."""
        good = sum(check["passed"] for check in self.checks)
        found = [f"{good} of {len(self.checks)} checks passed"] if self.checks else []
        found += [f"{len(self.rows)} times"] if self.rows else []
        found += [f"left out: {one['name']}" for one in self.left_out]
        return "; ".join(found + ([self.why] if self.why else []))


def run(
    device: str, folder: Path, small: bool = False, budget: float = BUDGET,
    names: Sequence[str] | None = None, say: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[Report, list[Outcome]]:  # fmt: skip
    """All steps, or those that are named, one after the other; logs go to ``folder``.

    Args:
        device: ``cuda``, or ``cpu`` to try the steps.
        small: sizes for tests.
        budget: seconds of all steps.
        say: called with the outcome of each step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start, outcomes = perf_counter(), []
    for name in LIMITS if names is None else names:
        left = budget - (perf_counter() - start)
        limit = min(LIMITS[name] * (4 if small else 1), left)
        if limit < SHORTEST or (name in OPTIONAL and left < LIMITS[name]):
            outcome = Outcome(name, NOT_RUN, why=f"{max(left, 0.0):.0f} s were left")
        else:
            outcome = (_suite if name == "suite" else _step)(name, device, folder, small, limit)
        outcomes.append(outcome)
        say(outcome)
    return _report(outcomes, device), outcomes


def _step(name: str, device: str, folder: Path, small: bool, limit: float) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.jsonl"
        command = [
            sys.executable, "-m", STEPS, name, f"--device={device}",
            f"--out={out}", f"--seconds={limit / 2}", *(["--small"] if small else []),
        ]  # fmt: skip
        outcome = Outcome(name, PASSED, limit=limit)
        status, outcome.seconds = _under_a_limit(command, folder / f"{name}.log", limit)
        lines = out.read_text().splitlines() if out.exists() else []
    for line in lines:
        try:
            found = json.loads(line)
        except json.JSONDecodeError:  # stopped while it wrote
            continue
        kind = found.pop("kind")
        if kind == "environment":
            outcome.environment = found["values"]
        else:
            {"check": outcome.checks, "row": outcome.rows, "left out": outcome.left_out}[
                kind
            ].append(found)
    return _judged(outcome, status, folder / f"{name}.log")


def _suite(name: str, device: str, folder: Path, small: bool, limit: float) -> Outcome:
    """A slice of the tests, each of which is a check."""
    log = folder / f"{name}.log"
    outcome = Outcome(name, PASSED, limit=limit)
    if not TESTS.is_dir():
        outcome.status, outcome.why = FAILED, f"there is no folder {TESTS}: run it in a checkout"
        return outcome
    chosen = ["-k", "test_any_size and zbl"] if small else ["-m", "not slow"]
    command = [
        sys.executable, "-m", "pytest", *(str(TESTS / file) for file in SUITE), "-v", *chosen,
        f"--device={device}", f"--rootdir={TESTS.parent}", "-p", "no:cacheprovider", "-o",
        "console_output_style=count",
    ]  # fmt: skip
    status, outcome.seconds = _under_a_limit(command, log, limit)
    for line in log.read_text().splitlines():
        if (match := DONE.match(line)) and match[2] in ("PASSED", "FAILED", "ERROR"):
            test, passed = match[1].rpartition("::")[2], match[2] == "PASSED"
            outcome.checks.append(
                {"name": test, "error": None, "tolerance": None, "passed": passed, "why": ""}
            )
    return _judged(outcome, status, log)


def _judged(outcome: Outcome, status: int | None, log: Path) -> Outcome:
    wrong = [check["name"] for check in outcome.checks if not check["passed"]]
    why = []
    if status is None:
        why.append(f"stopped after {outcome.limit:.0f} s")
    elif status and not wrong:
        why.append(f"exit status {status}, see {log.name}: {_last(log)}")
    if wrong:
        why.append(f"failed: {', '.join(wrong[:3])}" + ", ..." * (len(wrong) > 3))
    if not (outcome.checks or outcome.rows):
        why.append("nothing was checked")
    outcome.why = "; ".join(why)
    outcome.status = FAILED if why else PASSED
    return outcome


def _last(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"


def _under_a_limit(command: list[str], log: Path, limit: float) -> tuple[int | None, float]:
    """Exit status, None where it was stopped, and seconds. It is stopped with all that it started,
    compilers among them."""
    start = perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "250"},
        )  # fmt: skip
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)  # a driver that hangs may not let it go
    return status, perf_counter() - start


def _report(outcomes: list[Outcome], device: str) -> Report:
    """What ``fastmlip bench`` writes, and the steps with it."""
    measured: dict[str, Any] = next((o.environment for o in outcomes if o.environment), {})
    steps = [{**asdict(o), "text": o.text, "failed": o.failed} for o in outcomes]
    for step in steps:
        del step["rows"], step["environment"]
    found = {
        "date": "", "commit": "", "device": device, "threads": 0, "load before": 0.0,
        "machine": {}, "versions": {}, "backends": {}, "peaks": {},
    }  # fmt: skip
    if not measured:
        found["machine"], found["versions"] = machine(), versions()
    environment = {**found, **measured, "steps": steps, "failed": []}
    return Report(environment, [Row(**row) for o in outcomes for row in o.rows])

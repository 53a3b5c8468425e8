"""Runs the suite in a process of its own, and shows how far it is."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .results import Report, load

SUITE = Path(__file__).resolve().parent
# what pytest -v prints of a row that is done: its name, the outcome, "[ 12/280]"
DONE = re.compile(r"^(\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b.*\[\s*(\d+)/(\d+)\]")
NO_ROWS = 5  # pytest's exit status
COLLECTED = re.compile(r"^\d+ rows, (once|\d+ times) each: about \d+ min")
EVERY = 10.0  # seconds between two lines of progress, where there is no terminal
Show = Callable[[str, int, int], None]  # of a step: its name, its number, and how many there are


class SuiteError(RuntimeError):
    """The suite did not run to a result."""


def run(options: Sequence[str], log: Path | None, screen: Console) -> Report:
    """Time the suite with pytest's ``options``; what pytest prints goes to ``log``, if it is given.

    ``environment["failed"]`` of the result names the rows that raised instead of being timed.

    Raises:
        SuiteError: nothing was timed; the message has the end of the log.
    """
    for package in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(package) is None:
            raise SuiteError(f"{package} is not installed: pip install 'fastmlip[bench]'")
    with tempfile.TemporaryDirectory() as folder:
        timings = Path(folder) / "timings.json"
        command = [
            sys.executable, "-m", "pytest", str(SUITE), "-v", "--benchmark-only",
            f"--benchmark-json={timings}", f"--config-file={os.devnull}", f"--rootdir={SUITE}",
            *("-p", "no:cacheprovider"), *("-o", "python_files=bench_*.py"),
            *("-o", "python_functions=bench_*"), *("-o", "console_output_style=count"), *options,
        ]  # fmt: skip
        printed = log or Path(folder) / "pytest.log"
        failed, status = _follow(command, printed, screen)
        if status == NO_ROWS:
            operators = sorted(p.stem.removeprefix("bench_") for p in SUITE.glob("bench_*.py"))
            raise SuiteError(
                f"no row is chosen by {shlex.join(options)}; there are rows of "
                f"{', '.join(operators)}"
            )
        if not timings.exists() or timings.stat().st_size == 0:
            end = "\n".join(printed.read_text().splitlines()[-15:])
            where = f" {log}" if log else " what it printed"
            raise SuiteError(
                f"pytest timed nothing, exit status {status}; the end of{where}:\n{end}"
            )
        report = load(timings)
    report.environment["failed"] = failed
    return report


def _follow(command: Sequence[str], log: Path, screen: Console) -> tuple[list[str], int]:
    """Run it and show how far it is; names of the rows that failed, and the exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "250"},
    )
    assert process.stdout is not None
    shown = _bar(screen) if screen.is_terminal else _lines(screen)
    with process, shown as show, log.open("w") as file:
        try:
            for line in process.stdout:
                file.write(line)
                if COLLECTED.match(line):
                    screen.print(line.strip(), markup=False, highlight=False, soft_wrap=True)
                elif match := DONE.match(line):
                    name, outcome, number, total = match.groups()
                    row = name.rpartition("::")[2]
                    if outcome in ("FAILED", "ERROR"):
                        failed.append(row)
                    show(row, int(number), int(total))
        except BaseException:
            process.terminate()  # Ctrl-C, or a full disk: leave nothing running
            raise
    return failed, process.returncode


@contextlib.contextmanager
def _bar(screen: Console) -> Iterator[Show]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task("importing", total=None)

        def show(row: str, number: int, total: int) -> None:
            progress.update(task, description=row, completed=number, total=total)

        yield show


@contextlib.contextmanager
def _lines(screen: Console) -> Iterator[Show]:
    """For a file or a pipe: a line from time to time, after the first step and after the last."""
    screen.print("importing")
    start = perf_counter()
    last = -EVERY

    def show(row: str, number: int, total: int) -> None:
        nonlocal last
        now = perf_counter() - start
        if now - last >= EVERY or number == total:
            last = now
            text = f"{number} of {total} steps after {now:.0f} s: {row}"
            screen.print(text, markup=False, highlight=False, soft_wrap=True)

    yield show

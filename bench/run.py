"""Runs the suite in a process of its own, with a progress bar."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .results import Report, load

SUITE = Path(__file__).resolve().parent
# what pytest -v prints of a row that is done: its name, the outcome, "[ 12/280]"
DONE = re.compile(r"^(\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b.*\[\s*(\d+)/(\d+)\]")


class SuiteError(RuntimeError):
    """The suite did not run to a result."""


def run(options: Sequence[str], log: Path, screen: Console) -> Report:
    """Time the suite with pytest's ``options``; what pytest prints goes to ``log``.

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
            *("-o", "python_functions=bench_*"), *("-o", "markers=slow: long"),
            *("-o", "console_output_style=count"), *options,
        ]  # fmt: skip
        failed, status = _follow(command, log, screen)
        if not timings.exists() or timings.stat().st_size == 0:
            end = "\n".join(log.read_text().splitlines()[-15:])
            raise SuiteError(f"pytest timed nothing, exit status {status}; {log} ends with\n{end}")
        report = load(timings)
    report.environment["failed"] = failed
    return report


def _follow(command: Sequence[str], log: Path, screen: Console) -> tuple[list[str], int]:
    """Run it under a progress bar; names of the rows that failed, and the exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "250"},
    )
    assert process.stdout is not None
    with process, Progress(*columns, console=screen) as progress, log.open("w") as file:
        task = progress.add_task("importing", total=None)
        try:
            for line in process.stdout:
                file.write(line)
                if match := DONE.match(line):
                    name, outcome, number, total = match.groups()
                    row = name.rpartition("::")[2]
                    if outcome in ("FAILED", "ERROR"):
                        failed.append(row)
                    progress.update(task, description=row, completed=int(number), total=int(total))
        except BaseException:
            process.terminate()  # Ctrl-C, or a full disk: leave nothing running
            raise
    return failed, process.returncode

"""A fresh Python process: for settings that a process reads once, and for crashes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap


def run_python(code: str, *arguments: str, timeout: float = 600, **environment: str) -> str:
    """What ``code`` prints, run with ``environment`` set; its error output where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=tempfile.gettempdir(),  # "-c" puts the working directory first on the path
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_interpreted(test_file: str, marker: str = "not slow") -> None:
    """The tests of a file with Triton's interpreter, which is chosen when kernels are defined."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--durations=5", test_file, "-m", marker],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

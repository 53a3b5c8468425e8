"""What a result needs beside it: the machine and what it gives, versions, commit, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import fastmlip

from .results import COPY, PRODUCT

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "fastmlip", "torch", "triton", "e3nn", "nequip", "nequip-allegro", "cuequivariance-torch",
    "openequivariance", "lunaequivariance", "numpy",
)  # fmt: skip
# what of fastmlip.info() is not said elsewhere
BACKENDS = ("asked for", "cpu tensors", "instruction set", "gpu tensors")


def environment(device: str, load: float = 0.0) -> dict[str, Any]:
    """Everything but the times; the peaks are measured by this call.

    ``load`` is the load average from before the run: how many other processes were at work.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device,
        "threads": torch.get_num_threads(),
        "load before": round(load, 2),
        "machine": machine(),
        "versions": versions(),
        "backends": {k: v for k, v in fastmlip.info().items() if k in BACKENDS},
        "peaks": peaks(device),
    }


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, system, GPU."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(allowed(0)),
        "memory GiB": round(memory, 1),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def versions() -> dict[str, str]:
    """Of Python and of all packages that are compared and installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the checkout these files lie in, "+" after it where files have changed;
    empty where they lie in no checkout of their own, as in an installed package."""
    if not (HERE.parent / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "-uno"))


def peaks(device: str = "cpu", repeats: int = 10) -> dict[str, float]:
    """What this machine gives torch now: a large matrix product, and a large copy, best of many,
    in float32 (NequIP makes float64 the default).

    They are yardsticks measured in the same session. A matrix product does not reach the peak of
    the arithmetic units, and a loop may read faster than a copy runs.
    """

    def best(function: Callable[[], Any]) -> float:
        times = []
        for _ in range(repeats):
            synchronize(device)
            start = perf_counter()
            function()
            synchronize(device)
            times.append(perf_counter() - start)
        return min(times)

    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=torch.float32)
    source = torch.randn(1 << 26, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    return {
        PRODUCT: 2e-9 * size**3 / best(lambda: a @ a),
        COPY: 2e-9 * source.numel() * 4 / best(lambda: target.copy_(source)),
    }


def synchronize(device: str) -> None:
    """Wait for the GPU, where there is one to wait for."""
    if device != "cpu":
        torch.cuda.synchronize()

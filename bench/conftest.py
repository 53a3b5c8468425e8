"""Benchmarks: each fused row runs beside its peer, in the same process, after they have agreed.

``pytest bench --benchmark-only`` prints pytest-benchmark's tables and then the ratios. Threads are
pinned (``--threads``, default 2) because a benchmark must say what it ran on.
"""

from __future__ import annotations

import pytest
import torch

import fastmlip


def pytest_addoption(parser):
    parser.addoption("--threads", type=int, default=2, help="threads of torch (default 2)")


def pytest_configure(config):
    torch.set_num_threads(config.getoption("--threads"))


def measured_peak() -> str:
    """What this machine gives torch now: a large matrix product, and a large copy."""
    from time import perf_counter

    def best(function, repeats=7):
        times = []
        for _ in range(repeats):
            start = perf_counter()
            function()
            times.append(perf_counter() - start)
        return min(times)

    a = torch.randn(2048, 2048)
    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    flops = 2 * 2048**3 / best(lambda: a @ a)
    moved = 2 * source.nbytes / best(lambda: target.copy_(source))
    return f"float32 matrix product {flops / 1e9:.0f} GFLOP/s, copy {moved / 1e9:.1f} GB/s"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    groups: dict[str, dict[str, object]] = {}
    for bench in session.benchmarks:
        if bench.stats.rounds:
            groups.setdefault(bench.group, {})[bench.extra_info["who"]] = bench
    write = terminalreporter.write_line
    write("")
    write(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {fastmlip.info()}")
    write(f"measured in this session: {measured_peak()}")
    write(f"{'group':44s} {'peer':>11s} {'fastmlip':>11s} {'ratio':>7s}  (medians)")
    for group, rows in groups.items():
        if {"peer", "fastmlip"} > set(rows):
            continue
        peaks = [rows[who].extra_info.get("peak_mib") for who in ("peer", "fastmlip")]
        if all(peaks):
            columns = f"{peaks[0]:8.0f} MiB {peaks[1]:7.0f} MiB"
            write(f"{group:44s} {columns} {peaks[0] / peaks[1]:5.1f}x")
        else:
            peer, ours = (rows[who].stats.median for who in ("peer", "fastmlip"))
            note = rows["fastmlip"].extra_info.get("note", "")
            write(
                f"{group:44s} {peer * 1e3:8.2f} ms {ours * 1e3:8.2f} ms {peer / ours:6.1f}x  {note}"
            )


@pytest.fixture
def compare(benchmark):
    """``compare(who, function, rounds)``: one row of a group's table."""

    def run(who, function, group, rounds=15, **extra):
        benchmark.group = group
        benchmark.extra_info.update(who=who, threads=torch.get_num_threads(), **extra)
        benchmark.pedantic(function, rounds=rounds, warmup_rounds=2)

    return run

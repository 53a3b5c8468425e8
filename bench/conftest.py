"""Benchmarks: each row of fastmlip runs beside its peers, in one process, after they have agreed.

``pytest bench --benchmark-only`` prints pytest-benchmark's tables and then the ratios. Threads are
pinned (``--threads``, default 2) because a benchmark must say what it ran on. ``--all`` runs what
:mod:`~fastmlip.bench.default_run` leaves out.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from time import perf_counter

import pytest
import torch

from . import default_run
from .environment import environment, synchronize
from .results import Report, collect
from .summary import text

# beside MACE there is an e3nn that the models of other rows do not take
if importlib.util.find_spec("mace"):
    collect_ignore = [
        str(p) for p in Path(__file__).parent.glob("bench_*.py") if p.stem != "bench_mace"
    ]
NOT_GROUPS = ("who", "block")  # parameters in which the rows of a group differ


def pytest_addoption(parser):
    group = parser.getgroup("fastmlip")
    group.addoption("--threads", type=int, default=2, help="threads of torch (default 2)")
    group.addoption("--device", default="cpu", help="cpu (default) or cuda")
    group.addoption("--all", action="store_true", help="all rows, not only those of ten minutes")
    group.addoption(
        "--seconds", type=float, default=2.0, help="longest time of a row, three rounds at least"
    )
    group.addoption(
        "--blocks", type=int, default=1,
        help="time every row that many times, in turns with its peers, and merge the rounds",
    )  # fmt: skip


def pytest_configure(config):
    torch.set_num_threads(config.getoption("--threads"))
    config._fastmlip_load = os.getloadavg()[0]
    if config.getoption("--device") != "cpu" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no GPU here")


def pytest_generate_tests(metafunc):
    blocks = metafunc.config.getoption("--blocks")
    if blocks > 1 and "block" in metafunc.fixturenames:
        metafunc.parametrize("block", range(blocks), indirect=True)


def _parameters(item):
    return getattr(getattr(item, "callspec", None), "params", {})


def pytest_collection_modifyitems(config, items):
    """The rows of this run, and peers in turns: all rows of a group's first block, then all of its
    second, ..."""
    if not config.getoption("--all"):
        left_out = [i for i in items if not default_run.has(i.function.__name__, _parameters(i))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]

    def group(item):
        rest = sorted((k, str(v)) for k, v in _parameters(item).items() if k not in NOT_GROUPS)
        return item.path, item.function.__name__, tuple(rest)

    place = {key: n for n, key in enumerate(dict.fromkeys(map(group, items)))}
    items.sort(key=lambda item: (place[group(item)], _parameters(item).get("block", 0)))


def pytest_report_collectionfinish(config, items):
    """Said before the first step runs, see ``COLLECTED`` of run.py."""
    blocks = config.getoption("--blocks")
    steps = [item.function.__name__ for item in items]
    times = "once" if blocks == 1 else f"{blocks} times"
    minutes = default_run.minutes(steps)
    return f"{len(steps) // blocks} rows, {times} each: about {minutes} min on 2 cores"


@pytest.fixture
def block(request):
    """The number of this turn, see ``--blocks``."""
    return getattr(request, "param", 0)


@pytest.fixture
def device(request):
    """Where the operands live."""
    return request.config.getoption("--device")


@pytest.fixture
def compare(benchmark, request, block, device):
    """``compare(who, function, ...)``: one row; rows of one group are compared with each other.

    Args:
        who: ``fastmlip``, or the peer that runs here.
        function: takes no arguments; on a GPU each call is waited for.
        group: name of the group; by default put together from what follows.
        rounds: how many at most; as many as ``--seconds`` allow, at least three.
        case, what: of the operator that the file is named after, a row of the table of cases, and
            what of it is timed.
        size: ``("edges", 5400)``: what a plot of the scaling has on its axis.
        flops, moved: floating-point operations and bytes of one call, where they are known.
        extra: whatever else a reader should know; ``note`` stands beside the ratio.
    """

    def run(
        who, function, group=None, rounds=15, *, case=None, what="", size=(), flops=None,
        moved=None, **extra,
    ):  # fmt: skip
        operator = request.path.stem.removeprefix("bench_")
        if group is None:
            group = " ".join([operator, case or "", *(str(s) for s in size[::-1]), what])
        benchmark.group = group
        benchmark.extra_info.update(
            who=who, operator=operator, case=case or group, what=what, size=list(size),
            flops=flops, moved=moved, threads=torch.get_num_threads(), device=device, **extra,
        )  # fmt: skip

        def call():
            function()
            synchronize(device)

        call()
        start = perf_counter()
        call()
        once = perf_counter() - start
        blocks, seconds = (request.config.getoption(o) for o in ("--blocks", "--seconds"))
        # a round of many calls where one is too short for a clock
        calls = max(1, min(200, round(2e-4 / once))) if rounds > 1 else 1
        affordable = int(seconds / blocks / (once * calls))
        benchmark.pedantic(
            call,
            rounds=min(rounds, max(-(-3 // blocks), affordable)),
            iterations=calls,
            warmup_rounds=int(once < seconds),
        )

    return run


def _environment(config):
    if not hasattr(config, "_fastmlip_environment"):
        device, load = config.getoption("--device"), config._fastmlip_load
        config._fastmlip_environment = environment(device, load)
    return config._fastmlip_environment


def pytest_benchmark_update_json(config, output_json):
    output_json["fastmlip"] = _environment(config)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    benchmarks = [b.as_dict() for b in session.benchmarks if b.stats.rounds] if session else []
    if not benchmarks:
        return
    there = _environment(config)
    write = terminalreporter.write_line
    write("")
    write(f"torch {torch.__version__}, {there['threads']} threads, {there['backends']}")
    peaks = ", ".join(f"{value:.0f} {name}" for name, value in there["peaks"].items())
    write(f"measured in this session: {peaks}; load average before it: {there['load before']}")
    for line in text(Report(there, collect(benchmarks))):
        write(line)

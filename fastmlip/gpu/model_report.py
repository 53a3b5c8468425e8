"""``fastmlip gpu-report --model``: whole models on GPUs, launch by launch, by a model of time.

Nothing here is measured. A call of a model is a list of launches (:mod:`fastmlip.gpu.trace`); each
takes a modelled time (:mod:`fastmlip.gpu.latency`) and the gap after it. With a CUDA graph the
total is the sum of both. Without one the host has to make the launches one by one, and the total is
the longer of what it and the GPU take. Launch overhead is the share of a total that kernels are not
at work in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fastmlip.gpu import forms, gpus, latency
from fastmlip.gpu.code import Code, compiled, variant
from fastmlip.gpu.gpus import Gpu
from fastmlip.gpu.latency import Modelled
from fastmlip.gpu.report import reason
from fastmlip.gpu.targets import Target
from fastmlip.gpu.trace import Launch, Trace, trace

NOTE = (
    "All times are modelled, none is measured: no kernel ran. See docs/gpu_proof.md for what the "
    "model assumes. Launches and bytes are counted. Caches are not modelled: where operands of "
    "stock fit one, as those of some hundred atoms do, its times and the ratio are too high."
)
SHOWN = 12  # rows of the list of launches


@dataclass(frozen=True)
class Line:
    """A launch, or several of the same name and work."""

    name: str
    operator: str  # of fastmlip that launches it
    times: int
    launches: int  # of all times
    nbytes: float
    flops: float
    seconds: float
    bound: str


@dataclass(frozen=True)
class Total:
    """A call of a model in one form on one GPU."""

    model: str
    call: str
    atoms: int
    edges: int
    form: str
    gpu: str
    error: str  # the compiler's, of the first kernel that does not compile
    launches: int
    nbytes: float
    flops: float
    kernels: float | None  # modelled seconds of all launches
    with_graph: float | None  # modelled seconds of the call
    eager: float | None
    lines: tuple[Line, ...]

    def overhead(self, total: float | None) -> float | None:
        """The share of a total that no kernel works in."""
        return None if not total or self.kernels is None else 1 - self.kernels / total


class Codes:
    """Compiled launches: each kernel once for a target and what a launch specialises on."""

    def __init__(self) -> None:
        self._known: dict[Any, Code] = {}

    def of(self, call: Any, target: Target) -> Code:
        _, signature, constants, attributes = variant(call, target)
        key = (id(call.kernel), target.name, call.lanes, repr((signature, constants, attributes)))
        if key not in self._known:
            self._known[key] = compiled(call, target)
        return self._known[key]


def traces(
    name: str, sizes: Iterable[int], calls: Iterable[str] = forms.CALLS
) -> Iterator[tuple[str, int, int, str, Trace]]:
    """``(call, atoms, edges, form, trace)`` of a model; sizes are numbers of cells along an edge of
    the crystal."""
    host = forms.load(name)
    frames = [forms.crystal(host, cells) for cells in sizes]
    for form, model in forms.forms(host):
        for what in calls:
            if what == forms.CALLS[1] and not forms.can_train(form):
                continue
            run = forms.call(host, model, what)
            for data in frames:
                atoms, edges = len(data["pos"]), data["edge_index"].shape[1]
                yield what, atoms, edges, form, trace(run, data)


def modelled(
    launch: Launch, gpu: Gpu, codes: Codes, atoms: int, edges: int
) -> tuple[Modelled, float]:
    """Time of a launch, and its FLOPs. A program of a kernel with one for each node walks the
    edges of the node."""
    work, call = launch.work, launch.call
    if call is None:
        time = latency.of_torch(gpu, work.nbytes, work.flops, work.rounds, work.double)
        return time, work.flops
    items = edges / atoms if call.grid[0] == atoms else 1
    code, programs = codes.of(call, gpu.target), math.prod(call.grid)
    time = latency.launch(code, gpu, programs, items, work.nbytes, work.double)
    return time, latency.flops(code, gpu, programs, items)


def total(
    model: str, what: str, atoms: int, edges: int, form: str, found: Trace, gpu: Gpu, codes: Codes
) -> Total:
    """One call on one GPU."""
    error, lines = "", dict[tuple, Line]()
    seconds = 0.0
    for one in found.launches:
        try:
            time, flops = modelled(one, gpu, codes, atoms, edges)
        except Exception as problem:  # whatever a compiler raises; the others are still listed
            error = error or f"{one.name}: {reason(problem)}"
            time, flops = Modelled(math.nan, math.nan, math.nan, math.nan), 0.0
        seconds += time.seconds
        key = one.name, one.operator, one.work, time
        old = lines.get(key)
        times = old.times + 1 if old else 1
        lines[key] = Line(
            one.name, one.operator, times, times * one.work.launches, times * one.work.nbytes,
            times * flops, times * time.seconds, time.bound,
        )  # fmt: skip
    host = (
        gpus.HOST_VIEW * found.views + gpus.HOST_CUSTOM * found.custom_calls
        + sum(gpus.HOST_OPERATOR if one.call is None else gpus.HOST_LAUNCH
              for one in found.launches)
    )  # fmt: skip
    known = None if error else seconds
    return Total(
        model, what, atoms, edges, form, gpu.name, error, found.total,
        sum(one.work.nbytes for one in found.launches),
        sum(line.flops for line in lines.values()), known,
        None if error else seconds + gpus.GAP_GRAPH * found.total,
        None if error else max(seconds + gpus.GAP_STREAM * found.total, host),
        tuple(sorted(lines.values(), key=lambda line: -line.seconds)),
    )  # fmt: skip


def report(
    name: str, sizes: Iterable[int], chosen: Iterable[Gpu], calls: Iterable[str] = forms.CALLS,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Total]:  # fmt: skip
    """Totals of a model, in the order that they are shown in."""
    codes, totals = Codes(), []
    chosen = list(chosen)
    for what, atoms, edges, form, found in traces(name, sizes, calls):
        for gpu in chosen:
            progress(f"{form}, {what}, {atoms} atoms, {gpu.name}")
            totals.append(total(name, what, atoms, edges, form, found, gpu, codes))
    order = {gpu.name: n for n, gpu in enumerate(chosen)}
    return sorted(totals, key=lambda t: (forms.CALLS.index(t.call), t.atoms, order[t.gpu]))


def tables(totals: list[Total]) -> Iterator[Table]:
    """One for each call and size, and the longest launches of the first GPU and the smallest size
    of each form."""
    for key in dict.fromkeys((t.call, t.atoms, t.edges) for t in totals):
        mine = [t for t in totals if (t.call, t.atoms, t.edges) == key]
        yield _totals(mine)
    first = totals[0]
    for one in totals:
        same = (one.gpu, one.atoms, one.call) == (first.gpu, first.atoms, first.call)
        if same and one.form != forms.PRODUCT:
            yield _launches(one)


def _totals(mine: list[Total]) -> Table:
    first = mine[0]
    title = (
        f"{first.model}, {first.call}, {first.atoms:,} atoms, {first.edges:,} edges: modelled ms"
    )
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for heading in ("GPU", "form"):
        table.add_column(heading, no_wrap=True)
    for heading in ("launches", "MB", "graph", "ovh.", "eager", "ovh.", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    stock = {t.gpu: t for t in mine if t.form == forms.STOCK}
    for t in mine:
        base = stock[t.gpu].with_graph
        ratio = base / t.with_graph if base and t.with_graph else None
        table.add_row(
            t.gpu, t.form, str(t.launches), f"{t.nbytes / 1e6:.3g}", _ms(t.with_graph),
            _share(t.overhead(t.with_graph)), _ms(t.eager), _share(t.overhead(t.eager)),
            "-" if ratio is None else f"{ratio:.2g}", style="bold red" if t.error else None,
        )  # fmt: skip
    return table


def _launches(one: Total) -> Table:
    title = f"{one.model}, {one.form}: longest launches on {one.gpu}, {one.atoms:,} atoms, modelled"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("launch", overflow="fold")
    for heading in ("times", "MB", "MFLOP", "us", "bound by"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in one.lines[:SHOWN]:
        table.add_row(
            line.name, str(line.times), f"{line.nbytes / 1e6:.3g}", f"{line.flops / 1e6:.3g}",
            f"{line.seconds * 1e6:.3g}", line.bound,
        )  # fmt: skip
    rest = one.lines[SHOWN:]
    table.add_row(
        f"{len(rest)} more rows, in the file of --out", str(sum(line.times for line in rest)),
        f"{sum(line.nbytes for line in rest) / 1e6:.3g}",
        f"{sum(line.flops for line in rest) / 1e6:.3g}",
        f"{sum(line.seconds for line in rest) * 1e6:.3g}", "",
    )  # fmt: skip
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3g}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def write(totals: list[Total], out: Path) -> None:
    """Everything as JSON, with the versions and what the model takes for granted."""
    import torch
    import triton

    content = {
        "note": NOTE,
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "gpus": {name: asdict(gpu) for name, gpu in gpus.GPUS.items()},
        "assumed": {
            name: getattr(gpus, name)
            for name in ("ROUND", "GAP_STREAM", "GAP_GRAPH", "HOST_OPERATOR", "HOST_VIEW",
                         "HOST_CUSTOM", "HOST_LAUNCH")
        },
        "rows": [asdict(t) for t in totals],
    }  # fmt: skip
    out.write_text(json.dumps(content, indent=1) + "\n")

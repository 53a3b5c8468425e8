"""``fastmlip gpu-report``: what the compilers say of every kernel, and what a roofline would say.

Nothing here is measured. Registers, spills, shared memory and instructions are read from compiled
code; occupancy follows from them and from a multiprocessor's limits; times are a model: compulsory
bytes and FLOPs at the vendors' peak figures (:mod:`fastmlip.gpu.targets`), and beside it one that
also waits for memory (:mod:`fastmlip.gpu.latency`).
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from fastmlip import backend
from fastmlip.gpu import latency
from fastmlip.gpu.code import KIND_NAMES, Code, compiled
from fastmlip.gpu.gpus import GPUS, Gpu
from fastmlip.gpu.passes import EDGES, EDGES_PER_NODE, NODES, Pass
from fastmlip.gpu.rounds import program
from fastmlip.gpu.targets import TARGETS, Target

NOTE = (
    "A model, not a measurement: no kernel ran. Time is the roofline at the vendor's peak figures, "
    f"with {EDGES_PER_NODE} edges a node; a real kernel takes longer. The times with latency add "
    "waves of programs and rounds of memory; docs/gpu_proof.md says what they assume."
)
SIZES = (108, 1000, 10000)  # nodes
_GPU_OF = {gpu.target.name: gpu for gpu in reversed(GPUS.values())}  # of two, the first


class CannotCompile(RuntimeError):
    """Triton is missing, or cannot compile here."""


@dataclass(frozen=True)
class Row:
    """A pass of an operator on a target; of several launches, the worst or the sum. What is read
    from code is None where ``error`` says why there is none."""

    operator: str
    case: str
    order: str
    target: str
    launches: int
    error: str  # the compiler's
    registers: int | None  # of a lane, most of all launches
    spilled: int | None  # bytes of a lane, sum
    shared: int | None  # bytes of a program, most
    occupancy: float | None  # least
    instructions: dict[str, int | None]  # by kind, of the edge loops, or of a kernel without one
    atomics: int | None
    bytes_per_edge: float  # an atom for scale_shift
    flops_per_edge: float
    model_gpu: str | None
    model_seconds_per_edge: float | None  # the roofline
    rounds: int | None  # of memory in a pass of the loop, or in a program without one; sum
    latency_seconds_per_edge: dict[str, float] | None  # by the number of nodes

    @property
    def fails(self) -> bool:
        return bool(self.error or self.spilled or self.atomics)

    @property
    def why(self) -> str:
        """What fails."""
        if self.error:
            return f"does not compile: {self.error}"
        return f"{self.spilled} bytes spilled, {self.atomics} atomics"


def check_compiler() -> None:
    """
    Raises:
        CannotCompile: naming what is missing.
    """
    if why := backend.load_triton():
        raise CannotCompile(
            f"{why}, and it compiles the kernels: pip install triton==3.7.1 "
            "(Linux on x86-64; no GPU is needed)"
        )
    if backend.interpreting():
        raise CannotCompile("TRITON_INTERPRET=1 is set: the interpreter compiles nothing; unset it")


def row(done: Pass, target: Target, codes: Iterable[Code]) -> Row:
    """The row of a pass from its compiled launches, which may fail to compile."""
    peak = target.peak
    names = ("registers", "spilled", "shared", "occupancy", "atomics", "rounds")
    read: dict[str, Any] = dict.fromkeys(names)
    instructions: dict[str, int | None] = dict.fromkeys(KIND_NAMES)
    error, at = "", None
    try:
        codes = list(codes)
        bodies = [program(c) for c in codes]
        read["rounds"] = sum((b.loop if b.step else b.once).rounds for b in bodies)
        if target.name in _GPU_OF:
            at = {str(n): _seconds_per_edge(done, codes, _GPU_OF[target.name], n) for n in SIZES}
        read["registers"] = max(c.registers for c in codes)
        read["spilled"] = sum(c.spilled for c in codes)
        read["shared"] = max(c.shared for c in codes)
        read["occupancy"] = min(c.occupancy for c in codes)
        read["atomics"] = sum(c.atomics for c in codes)
        total: Counter[str] = sum((c.loop or c.instructions for c in codes), Counter())
        instructions = {kind: total[kind] for kind in KIND_NAMES}
    except Exception as problem:  # whatever a compiler raises; the other kernels are compiled
        error = reason(problem)
    return Row(
        operator=done.operator, case=done.case, order=done.order, target=target.name,
        launches=len(done.calls), error=error, instructions=instructions,
        bytes_per_edge=done.nbytes, flops_per_edge=done.flops,
        model_gpu=peak.gpu if peak else None,
        model_seconds_per_edge=peak.seconds(done.nbytes, done.flops, done.double) if peak else None,
        latency_seconds_per_edge=at, **read,
    )  # fmt: skip


def _seconds_per_edge(done: Pass, codes: list[Code], gpu: Gpu, nodes: int) -> float:
    """The roofline of the pass, or the sum of what its launches take one after the other, if that
    is longer."""
    per = 1 if done.operator == "scale_shift" else EDGES_PER_NODE
    total = 0.0
    for call, code in zip(done.calls, codes, strict=True):
        along, *rest = call.grid
        if along == NODES:
            along = nodes
        elif along == EDGES:
            along = nodes * per
        else:  # blocks of edges, or of nodes
            block = 2 ** math.ceil(math.log2(EDGES / along)) if along > 1 else call.lanes
            along = math.ceil(nodes * per / block)
        programs = math.prod((along, *rest))
        total += latency.launch(code, gpu, programs, EDGES_PER_NODE, 0.0, done.double).seconds
    edges = nodes * per
    return max(total, edges * gpu.peak.seconds(done.nbytes, done.flops, done.double)) / edges


def reason(error: BaseException) -> str:
    """What it was in the end, in one line: Triton shows the source, once for each call."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"


def rows(todo: list[Pass], targets: list[Target]) -> Iterator[Row]:
    """Compile each pass for each target, one row at a time."""
    for target in targets:
        for one in todo:
            yield row(one, target, (compiled(call, target) for call in one.calls))


def tables(found: list[Row]) -> Iterator[Table]:
    """For each case of an operator on a target one of its launches and one of its instructions."""
    for key in dict.fromkeys((r.operator, r.case, r.target) for r in found):
        mine = [r for r in found if (r.operator, r.case, r.target) == key]
        gpu, name = mine[0].model_gpu, "{} {} on {}".format(*key)
        yield _table(
            f"{name}, modelled as {gpu}" if gpu else f"{name}, no model", mine,
            {
                "launches": lambda r: str(r.launches), "regs": lambda r: str(r.registers),
                "spill B": lambda r: str(r.spilled), "smem B": lambda r: str(r.shared),
                "occup.": lambda r: f"{r.occupancy:.0%}", "model ns/edge": _nanoseconds,
            },
        )  # fmt: skip
        kinds = ("fma", "float", "load", "store", "shared", "shuffle")
        yield _table(
            f"{name}, instructions and traffic", mine,
            {
                **{kind: partial(_instructions, kind) for kind in kinds},
                "atomic": lambda r: str(r.atomics), "B/edge": lambda r: f"{r.bytes_per_edge:.0f}",
                "FLOP/edge": lambda r: f"{r.flops_per_edge:.0f}",
            },
        )  # fmt: skip
        if gpu:
            yield _table(
                f"{name}, modelled with latency: ns/edge", mine,
                {"rounds": lambda r: str(r.rounds),
                 **{f"{n:,} nodes": partial(_latency, str(n)) for n in SIZES}},
            )  # fmt: skip


def _table(title: str, rows: list[Row], columns: dict[str, Callable[[Row], str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("order", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        style = "bold red" if r.fails else None
        read = ("B/edge", "FLOP", "model", "launches")  # not from code
        table.add_row(
            r.order,
            *("-" if r.error and not name.startswith(read) else get(r)
              for name, get in columns.items()),
            style=style,
        )  # fmt: skip
    return table


def _nanoseconds(r: Row) -> str:
    seconds = r.model_seconds_per_edge
    return "-" if seconds is None else f"{seconds * 1e9:.3g}"


def _latency(nodes: str, r: Row) -> str:
    found = r.latency_seconds_per_edge
    return "-" if found is None else f"{found[nodes] * 1e9:.3g}"


def _instructions(kind: str, r: Row) -> str:
    return str(r.instructions[kind])


def write(found: list[Row], out: Path) -> None:
    """Rows as ``.json`` or ``.csv``, with the versions that compiled them.

    Raises:
        ValueError: another ending.
    """
    import torch
    import triton

    check_out(out)
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    if out.suffix == ".json":
        content = {
            "note": NOTE,
            "versions": versions,
            "peaks": {name: t.peak and asdict(t.peak) for name, t in TARGETS.items()},
            "rows": [asdict(r) for r in found],
        }
        out.write_text(json.dumps(content, indent=1) + "\n")
        return
    flat = []
    for r in found:
        line = asdict(r)
        kinds = {f"instructions_{kind}": n for kind, n in line.pop("instructions").items()}
        at = line.pop("latency_seconds_per_edge") or dict.fromkeys(map(str, SIZES))
        times = {f"latency_seconds_per_edge_{n}_nodes": value for n, value in at.items()}
        flat.append({**line, **times, **kinds, **versions})
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


def check_out(out: Path) -> None:
    if out.suffix not in (".json", ".csv"):
        raise ValueError(f"expected a file that ends in .json or .csv, got {out.name!r}")

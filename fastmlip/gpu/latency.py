"""The modelled time of a launch: what is longest of four things that a GPU does at once.

- bytes, at the peak of the memory;
- arithmetic, at the peak of the vector units;
- issue: each of a multiprocessor's four schedulers issues one instruction in a cycle;
- latency: waves of programs, one after the other; in each, a program waits for its rounds of memory
  (:mod:`fastmlip.gpu.rounds`), those of its loop in every pass.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fastmlip.gpu.code import Code
from fastmlip.gpu.gpus import Gpu
from fastmlip.gpu.rounds import Program, program

SCHEDULERS = 4  # of a multiprocessor


class Modelled(NamedTuple):
    """Seconds that each of the four takes alone."""

    memory: float
    arithmetic: float
    issue: float
    latency: float

    @property
    def seconds(self) -> float:
        return max(self)

    @property
    def bound(self) -> str:
        """Which it is."""
        return self._fields[self.index(max(self))]


def flops(code: Code, gpu: Gpu, programs: int, items: float) -> float:
    """Of the code of a launch, which may make the same number in many lanes."""
    body = program(code)
    each = body.once.flops + _passes(body, items) * body.loop.flops
    return float(programs * code.num_warps * gpu.target.lanes * each)


def _passes(body: Program, items: float) -> int:
    return math.ceil(items / body.step) if body.step else 0


def launch(
    code: Code, gpu: Gpu, programs: int, items: float, nbytes: float, double: bool
) -> Modelled:
    """A launch of a compiled kernel.

    Args:
        programs: of the grid.
        items: what the loop of a program walks, edges of a node for instance.
        nbytes: read and written.
        double: whether it computes in float64.
    """
    if not programs:
        return Modelled(0.0, 0.0, 0.0, 0.0)
    body = program(code)
    once, loop, passes = body.once, body.loop, _passes(body, items)
    warps = programs * code.num_warps
    issued = warps * (once.instructions + passes * loop.instructions)
    resident = max(round(code.occupancy * gpu.target.warps / code.num_warps), 1) * gpu.processors
    waves = math.ceil(programs / resident)
    return Modelled(
        nbytes / gpu.peak.bandwidth,
        flops(code, gpu, programs, items) / (gpu.peak.float64 if double else gpu.peak.float32),
        issued / (gpu.processors * SCHEDULERS * gpu.clock),
        waves * (once.rounds + passes * loop.rounds) * gpu.round,
    )


def of_torch(gpu: Gpu, nbytes: float, work: float, rounds: int, double: bool) -> Modelled:
    """A kernel of torch's own with ``work`` FLOPs, whose code is not looked at: the roofline, but
    for the rounds of memory that it cannot do without."""
    peak = gpu.peak.float64 if double else gpu.peak.float32
    return Modelled(nbytes / gpu.peak.bandwidth, work / peak, 0.0, rounds * gpu.round)

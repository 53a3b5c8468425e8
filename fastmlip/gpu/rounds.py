"""How often the code of a program waits for memory, one load after another.

A warp issues its instructions in order and stops at the first that needs what a load has not
brought yet. All loads that were issued before then arrive together: one round. Loads whose
addresses come from another load, and loads behind a store that the compiler could not move them
across, need a further one. A roofline does not see these rounds; for few atoms they are the time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from fastmlip.gpu.code import Code, kind

WIDTHS = {"64": 2, "128": 4}  # registers of 32 bits that a load of NVIDIA's fills
_REGISTER = re.compile(r"\bR(\d+)\b(\.64)?")
_LOAD = re.compile(r"(?:@!?U?P\w+\s+)?LDG?\b\S*\s+R(\d+)")
_WAIT = re.compile(r"(vmcnt|lgkmcnt)\((\d+)\)")
_STEP = re.compile(r"\bI?V?IADD3?\S* (R\d+), (?:P\d, )?\1(?:\.reuse)?, (-?)0x(\w+)")


@dataclass(frozen=True)
class Walk:
    """Instructions of a warp and rounds of memory that it waits for."""

    instructions: int
    rounds: int
    flops: int  # of a lane


@dataclass(frozen=True)
class Program:
    """What a program does once, and in each pass through its loop over ``step`` items (edges of a
    node, atoms); ``step`` is 0 where it has none."""

    once: Walk
    loop: Walk
    step: int


@cache
def program(code: Code) -> Program:
    """The program of a compiled launch."""
    lines = [text for _, text in code.lines()]
    begin, end = code.longest_loop()
    inside = lines[begin : end + 1] if end > begin else []
    if not inside:
        return Program(_walk(lines, code.target.is_nvidia), Walk(0, 0, 0), 0)
    # of what stands outside, the copies of the loop for the last few passes are not run as well
    outside = lines[:begin] if code.target.is_nvidia else lines[:begin] + lines[end + 1 :]
    return Program(
        _walk(outside, code.target.is_nvidia),
        _walk(inside, code.target.is_nvidia),
        _items(inside, code.ttir),
    )


def _walk(lines: Sequence[str], nvidia: bool) -> Walk:
    kinds = [kind(line) for line in lines]
    flops = sum(2 * (k == "fma") * (2 if "FFMA2" in line or "v_pk" in line else 1) + (k == "float")
                for k, line in zip(kinds, lines, strict=True))  # fmt: skip
    return Walk(len(lines), (_nvidia_rounds if nvidia else _amd_rounds)(lines), flops)


def _nvidia_rounds(lines: Sequence[str]) -> int:
    """A register that a load is to fill is read, or written, by a later instruction."""
    rounds, awaited = 0, set[int]()
    for line in lines:
        load = _LOAD.match(line)
        used = {
            int(n) + more for n, wide in _REGISTER.findall(line) for more in range(1 + bool(wide))
        }
        if load:
            used.discard(int(load[1]))  # filled by two loads of opposite predicates
        if used & awaited:
            rounds, awaited = rounds + 1, set()
        if load:
            width = re.search(r"\.(64|128)\b", line.split("desc")[0])
            first = int(load[1])
            awaited |= set(range(first, first + (WIDTHS[width[1]] if width else 1)))
    return rounds + bool(awaited)


def _amd_rounds(lines: Sequence[str]) -> int:
    """The compiler writes where to wait, and for how many of the latest loads not to."""
    rounds = 0
    flying = {"vmcnt": 0, "lgkmcnt": 0}
    for line in lines:
        if line.startswith("s_waitcnt"):
            waits = False
            for counter, left in _WAIT.findall(line):
                waits |= flying[counter] > int(left)
                flying[counter] = min(flying[counter], int(left))
            rounds += waits
        elif kind(line) == "load":
            flying["lgkmcnt" if line.startswith("s_") else "vmcnt"] += 1
    return rounds + any(flying.values())


def _items(lines: Sequence[str], ttir: str) -> int:
    """Of a pass: the step of the loop as it was written, times the passes that the compiler made
    one of, by which a counter goes down (or, of blocks, up)."""
    found = re.search(r"scf\.for %\w+ = %\w+ to %\w+ step (%\w+)", ttir)
    constant = found and re.search(rf"{re.escape(found[1])} = arith\.constant (\d+)", ttir)
    written = int(constant[1]) if constant else 1
    matches = [match for line in lines if (match := _STEP.search(line))]
    steps = {int(m[3], 16) for m in matches if m[2] or written > 1}
    return next((written * n for n in (1, 2, 4, 8) if written * n in steps), written)

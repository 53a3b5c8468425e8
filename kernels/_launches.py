"""How a tensor-product convolution is cut into kernel launches, and the tables each one unrolls.

One launch serves one block of ``irreps_in1``: its paths share the multiplicity and the components
of x, so blocks of channels have no dead paths. A block whose sums would not fit the registers, or
whose code would grow too long, is cut into several launches. They run one after the other, and a
later one adds to the rows that an earlier one wrote.

A table is a nested tuple, one entry for each block of ``irreps_in2`` that the launch reads::

    table = ((in2_offset, d2, (path, ...)), ...)
    path  = (out_offset, d3, weight_offset, adds, number, terms)

``adds`` says that an earlier launch wrote to the output block, ``number`` counts the paths of the
launch. ``terms`` are the non-zero coefficients c_p C_p[m1, m2, m3] in the order that a
pass contracts them: ``terms[m3][m1] = ((m2, c), ...)`` to receive, ``terms[m1][m2] = ((m3, c),
...)`` to send.
"""

from __future__ import annotations

from functools import cache
from itertools import groupby
from typing import NamedTuple

import torch

from fastmlip.problem import Path, TensorProductProblem

Tensor = torch.Tensor
LANES = 32  # channels of a warp: the smallest block
MAX_WORDS = 96  # 32-bit registers of a lane for the sums and operands that live through an edge
MAX_SUMS = 32  # sums of a lane in second order: with 38 the compiler for sm_100 spills some
MAX_SPLINE_SUMS = 24  # likewise where weights are splines, whose polynomials live there too
MAX_SENT = 80  # words of a lane's several channels in second order: with 84, likewise
MAX_TERMS = 256  # coefficients unrolled into one kernel


class Table(tuple):
    """A nested tuple that computes its hash once: a launch looks its kernel up by it every time."""

    def __hash__(self) -> int:
        if not hasattr(self, "_hash"):
            self._hash = super().__hash__()
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


class Launch(NamedTuple):
    """One launch: a program for each node and each block of channels."""

    table: Table
    mul: int
    d1: int
    in1_offset: int
    adds: bool  # an earlier launch wrote to this block of dx
    block_u: int
    blocks: int
    first_part: int  # where this launch's partial sums of the gradient of edge_attr begin


@cache
def launches(
    problem: TensorProductProblem, sends: bool, second: bool, itemsize: int, spline: bool = False
) -> tuple[Launch, ...]:
    """All launches of a pass, in their order; ``second`` for the second derivatives, ``spline``
    where edge weights are values of splines."""
    done, part = [], 0
    written: set[int] = set()  # output blocks
    paths = sorted((p for p in problem.paths if p.mul), key=lambda p: (p.in1_offset, p.in2_offset))
    for in1_offset, block in groupby(paths, key=lambda p: p.in1_offset):
        for number, chunk in enumerate(_chunks(list(block), sends, second, itemsize, spline)):
            mul, d1 = chunk[0].mul, chunk[0].d1
            block_u = _block_u(chunk, sends, second, itemsize, spline)
            blocks = -(-mul // block_u)
            table = _table(chunk, sends, written)
            done.append(Launch(table, mul, d1, in1_offset, number > 0, block_u, blocks, part))
            written.update(p.out_offset for p in chunk)
            part += blocks
    return tuple(done)


def constants(launch: Launch, problem: TensorProductProblem) -> dict:
    """Those of every kernel that walks paths."""
    return {
        "TABLE": launch.table,
        "MUL": launch.mul,
        "D1": launch.d1,
        "IN1": launch.in1_offset,
        "DIM1": problem.dim_in1,
        "DIM2": problem.dim_in2,
        "DIM3": problem.dim_out,
        "BLOCK_U": launch.block_u,
        "IR_MUL": problem.layout == "ir_mul",
    }


def rows_like(like: Tensor, dim: int, written: set) -> Tensor:
    """``[N, dim]``, of zeros where the ``written`` blocks ``(offset, width)`` leave gaps."""
    covered = sum(width for _, width in written) == dim
    return (like.new_empty if covered else like.new_zeros)((like.shape[0], dim))


def _words(chunk: list[Path], sends: bool, second: bool, itemsize: int, spline: bool) -> int:
    """Estimated registers of a lane that holds one channel; more than MAX_WORDS is too many."""
    d1 = chunk[0].d1
    if sends:  # x, dx and their like; g, da and y of one path
        values = (3 if second else 2) * d1 + max(p.d3 + 2 * p.d2 for p in chunk)
        return values * itemsize // 4
    sums = sum(p.d3 for p in chunk)
    words = (sums + (4 if second else 2) * d1) * itemsize // 4  # and x, w x
    if second:
        most = MAX_SPLINE_SUMS if spline else MAX_SUMS
        words = max(words, -(-sums * itemsize // 4 * MAX_WORDS // most))
    return words


def _chunks(
    paths: list[Path], sends: bool, second: bool, itemsize: int, spline: bool
) -> list[list[Path]]:
    """Paths of one input block, first fit; a launch that receives holds an output block once."""
    sizes = [len(p.cg) for p in paths]
    even = sum(sizes) / -(-sum(sizes) // MAX_TERMS) + max(sizes) / 2
    chunks: list[list[Path]] = []
    for path in paths:
        for chunk in chunks:
            longer = [*chunk, path]
            fits = _words(longer, sends, second, itemsize, spline) <= MAX_WORDS
            short = sum(len(p.cg) for p in longer) <= even
            alone = sends or all(p.out_offset != path.out_offset for p in chunk)
            if fits and short and alone:
                chunk.append(path)
                break
        else:
            chunks.append([path])
    return chunks


def _block_u(chunk: list[Path], sends: bool, second: bool, itemsize: int, spline: bool) -> int:
    """Channels of a program: as many as fit the registers, with at most a tenth of them idle."""
    mul, words = chunk[0].mul, _words(chunk, sends, second, itemsize, spline)
    for lanes in (4, 2):
        block_u = lanes * LANES
        idle = -mul % block_u
        most = MAX_SENT if sends and second else MAX_WORDS
        if lanes * words <= most and 10 * idle <= mul:
            return block_u
    return LANES


def _table(chunk: list[Path], sends: bool, written: set[int]) -> Table:
    table, number = [], 0
    for in2_offset, paths in groupby(chunk, key=lambda p: p.in2_offset):
        rows = []
        for p in paths:
            terms = _terms(p, (0, 1, 2) if sends else (2, 0, 1))
            rows.append(
                (p.out_offset, p.d3, p.weight_offset, p.out_offset in written, number, terms)
            )
            number += 1
        d2 = next(p.d2 for p in chunk if p.in2_offset == in2_offset)
        table.append((in2_offset, d2, tuple(rows)))
    return Table(table)


def _terms(path: Path, axes: tuple[int, int, int]) -> tuple:
    """Coefficients with axes ``(row, column, contracted)`` out of ``(m1, m2, m3)``."""
    dims = (path.d1, path.d2, path.d3)
    rows, columns = dims[axes[0]], dims[axes[1]]
    nested: list[list[list]] = [[[] for _ in range(columns)] for _ in range(rows)]
    for *m, value in path.cg:
        nested[m[axes[0]]][m[axes[1]]].append((m[axes[2]], value))
    return tuple(tuple(tuple(cell) for cell in row) for row in nested)

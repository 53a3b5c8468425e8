"""The description of a tensor product and the tables made from it: pure data, no kernels.

:class:`TensorProductProblem` is the one labelled description that operators, tests and benchmarks
share. It is frozen and hashable, and turns into a string (``problem.key``) and back, because a
string is what an operator of torch can carry as an argument through tracing and export.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from e3nn.o3 import Irreps, wigner_3j

from fastmlip import layout

L_MAX = 11  # of irreps: e3nn's Wigner matrices end there; setup.py tells the C++ kernels

# Fields of one path's row in the table that the C++ kernels read; csrc/tensor_product/table.h
# names the same fields in the same order.
PATH_FIELDS = (
    "mul", "d1", "d2", "d3", "in1_block", "in2_offset", "out_block", "weight_offset", "cg_begin",
    "cg_end",
)  # fmt: skip


class Instruction(NamedTuple):
    """One path, blocks ``i_in1 x i_in2 -> i_out``, with the normalised coefficient."""

    i_in1: int
    i_in2: int
    i_out: int
    path_weight: float


class Path(NamedTuple):
    """One instruction with every size and offset a kernel needs (in elements)."""

    mul: int
    l1: int
    l2: int
    l3: int
    in1_offset: int
    in2_offset: int
    out_offset: int
    weight_offset: int
    path_weight: float

    @property
    def d1(self) -> int:
        return 2 * self.l1 + 1

    @property
    def d2(self) -> int:
        return 2 * self.l2 + 1

    @property
    def d3(self) -> int:
        return 2 * self.l3 + 1

    @property
    def cg(self) -> tuple[tuple[int, int, int, float], ...]:
        """Non-zero ``(m1, m2, m3, path_weight * CG)`` of this path, in lexicographic order."""
        triples = clebsch_gordan(self.l1, self.l2, self.l3)
        return tuple((m1, m2, m3, self.path_weight * c) for m1, m2, m3, c in triples)


@cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> tuple[tuple[int, int, int, float], ...]:
    """Non-zero ``(m1, m2, m3, value)`` of the installed e3nn's real Wigner 3j symbols, float64.

    They are made in a thread, which has none of torch's modes: numbers also while torch traces.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_clebsch_gordan, l1, l2, l3).result()


def _clebsch_gordan(l1: int, l2: int, l3: int) -> tuple[tuple[int, int, int, float], ...]:
    values = wigner_3j(l1, l2, l3, dtype=torch.float64)
    index = (values.abs() > 1e-12).nonzero().tolist()
    return tuple((m1, m2, m3, float(values[m1, m2, m3])) for m1, m2, m3 in index)


@dataclass(frozen=True)
class TensorProductProblem:
    """``irreps_in1 x irreps_in2 -> irreps_out`` with ``uvu`` instructions, one weight per channel.

    Build it with :meth:`from_instructions` (e3nn's arguments and normalisation) or
    :meth:`from_e3nn` (a ready ``e3nn.o3.TensorProduct``). The first operand and the result are in
    ``layout`` (:mod:`fastmlip.layout`), e3nn's ``mul_ir`` unless replaced.
    """

    irreps_in1: str
    irreps_in2: str
    irreps_out: str
    instructions: tuple[Instruction, ...]
    layout: str = "mul_ir"

    def __post_init__(self) -> None:
        layout.check("layout", self.layout)
        for name in ("irreps_in1", "irreps_in2", "irreps_out"):
            irreps = Irreps(getattr(self, name))
            if any(ir.l > L_MAX for _, ir in irreps):
                raise ValueError(f"{name}: expected irreps up to l = {L_MAX}, got {irreps}")
        # cached here, because before Python 3.12 Dynamo cannot trace a cached_property's lock
        _ = self.key, self.dim_in1, self.dim_in2, self.dim_out, self.weight_numel

    @classmethod
    def from_instructions(
        cls,
        irreps_in1: Any,
        irreps_in2: Any,
        irreps_out: Any,
        instructions: Any,
        irrep_normalization: str = "component",
        path_normalization: str = "element",
    ) -> TensorProductProblem:
        """Check e3nn-style instructions ``(i_in1, i_in2, i_out, "uvu", True[, path_weight])``.

        The coefficient of a path is e3nn's: ``sqrt(path_weight * alpha / x)`` with ``alpha`` the
        dimension of the output irrep (``component``), the product of the input dimensions
        (``norm``) or 1, and ``x`` the number of paths into the same output block (``element`` and
        ``path`` are the same where the second input has multiplicity one) or 1.

        Raises:
            ValueError: naming the instruction and what is wrong with it.
        """
        in1, in2, out = Irreps(irreps_in1), Irreps(irreps_in2), Irreps(irreps_out)
        for name, value, known in (
            ("irrep_normalization", irrep_normalization, ("component", "norm", "none")),
            ("path_normalization", path_normalization, ("element", "path", "none")),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {known}, got {value!r}")
        rows = [tuple(row) + (1.0,) * (len(row) == 5) for row in instructions]
        for number, row in enumerate(rows):
            _check_instruction(number, row, in1, in2, out)
        fan_in = [sum(other[2] == row[2] for other in rows) for row in rows]
        normalised = []
        for row, paths_into_block in zip(rows, fan_in, strict=True):
            i, j, k, _, _, path_weight = row
            alpha = {
                "component": out[k].ir.dim,
                "norm": in1[i].ir.dim * in2[j].ir.dim,
                "none": 1,
            }[irrep_normalization]
            x = 1 if path_normalization == "none" else paths_into_block
            normalised.append(Instruction(i, j, k, math.sqrt(alpha / x * path_weight)))
        return cls(str(in1), str(in2), str(out), tuple(normalised))

    @classmethod
    def from_e3nn(cls, tp: Any) -> TensorProductProblem:
        """From an ``e3nn.o3.TensorProduct``, with the coefficients that module computed."""
        in1, in2, out = (
            Irreps(str(tp.irreps_in1)),
            Irreps(str(tp.irreps_in2)),
            Irreps(str(tp.irreps_out)),
        )
        rows = [tuple(ins)[:6] for ins in tp.instructions]
        for number, row in enumerate(rows):
            _check_instruction(number, row, in1, in2, out)
        normalised = tuple(Instruction(i, j, k, float(c)) for i, j, k, _, _, c in rows)
        return cls(str(in1), str(in2), str(out), normalised)

    @cached_property
    def key(self) -> str:
        """This problem as a string; :meth:`from_key` is the inverse."""
        irreps = self.irreps_in1, self.irreps_in2, self.irreps_out
        return json.dumps([*irreps, self.instructions, self.layout])

    @staticmethod
    @cache
    def from_key(key: str) -> TensorProductProblem:
        in1, in2, out, instructions, layout = json.loads(key)
        rows = tuple(Instruction(*row) for row in instructions)
        return TensorProductProblem(in1, in2, out, rows, layout)

    @cached_property
    def dim_in1(self) -> int:
        return Irreps(self.irreps_in1).dim

    @cached_property
    def dim_in2(self) -> int:
        return Irreps(self.irreps_in2).dim

    @cached_property
    def dim_out(self) -> int:
        return Irreps(self.irreps_out).dim

    @cached_property
    def weight_numel(self) -> int:
        in1 = Irreps(self.irreps_in1)
        return sum(in1[ins.i_in1].mul for ins in self.instructions)

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The instructions in their order, with sizes and offsets; weights lie in this order."""
        in1, in2, out = Irreps(self.irreps_in1), Irreps(self.irreps_in2), Irreps(self.irreps_out)
        starts1, starts2, starts3 = (
            [block.start for block in irreps.slices()] for irreps in (in1, in2, out)
        )
        paths, weight_offset = [], 0
        for i, j, k, path_weight in self.instructions:
            mul = in1[i].mul
            paths.append(
                Path(
                    mul, in1[i].ir.l, in2[j].ir.l, out[k].ir.l,
                    starts1[i], starts2[j], starts3[k], weight_offset, path_weight,
                )
            )  # fmt: skip
            weight_offset += mul
        return tuple(paths)

    @property
    def flops_per_edge(self) -> int:
        """Multiply-adds of one edge's forward pass, counted as two, dense in (m1, m3)."""
        return sum(2 * p.mul * p.d3 * p.d1 for p in self.paths)

    def tables(self) -> torch.Tensor:
        """All the C++ kernels need, as one int64 tensor: a header, then rows, then CG triples.

        ``[n_blocks1, n_blocks2_dim, n_blocks3, n_paths, n_cg, weight_numel, ir_mul]``; per block of
        irreps_in1 and of irreps_out ``(mul, dim)``; per path :data:`PATH_FIELDS`; per CG triple
        ``(m1, m2, m3, bits of the float64 value)``. Integers only, so that ``module.float()`` or
        ``.half()`` cannot round the coefficients.
        """
        in1, out = Irreps(self.irreps_in1), Irreps(self.irreps_out)
        table: list[int] = []
        triples: list[tuple[int, int, int, float]] = []
        for path, ins in zip(self.paths, self.instructions, strict=True):
            begin = len(triples)
            triples += path.cg
            table += [
                path.mul, path.d1, path.d2, path.d3, ins.i_in1, path.in2_offset, ins.i_out,
                path.weight_offset, begin, len(triples),
            ]  # fmt: skip
        header = [
            len(in1),
            self.dim_in2,
            len(out),
            len(self.paths),
            len(triples),
            self.weight_numel,
            int(self.layout == "ir_mul"),
        ]
        blocks = [n for irreps in (in1, out) for block in irreps for n in (block.mul, block.ir.dim)]
        bits = (
            torch.tensor([c for *_, c in triples], dtype=torch.float64).view(torch.int64).tolist()
        )
        cg = [n for (m1, m2, m3, _), b in zip(triples, bits, strict=True) for n in (m1, m2, m3, b)]
        return torch.tensor(header + blocks + table + cg, dtype=torch.int64)


def _check_instruction(number: int, row: tuple, in1: Irreps, in2: Irreps, out: Irreps) -> None:
    where = f"instructions[{number}]"
    if len(row) != 6:
        raise ValueError(
            f"{where}: expected (i_in1, i_in2, i_out, mode, has_weight[, path_weight]), got {row}"
        )
    i, j, k, mode, has_weight, path_weight = row
    if mode != "uvu":
        raise ValueError(f"{where}: connection mode {mode!r} is not supported, expected 'uvu'")
    if not has_weight:
        raise ValueError(f"{where}: has_weight=False is not supported, every path takes a weight")
    for name, index, irreps in (("i_in1", i, in1), ("i_in2", j, in2), ("i_out", k, out)):
        if not 0 <= index < len(irreps):
            raise ValueError(
                f"{where}: {name}={index} is outside the {len(irreps)} blocks of {irreps}"
            )
    if in2[j].mul != 1:
        raise ValueError(
            f"{where}: irreps_in2[{j}] is {in2[j]}, its multiplicity must be 1 for edge_attr"
        )
    if in1[i].mul != out[k].mul:
        raise ValueError(
            f"{where}: 'uvu' needs equal multiplicities, got {in1[i]} in irreps_in1[{i}] and "
            f"{out[k]} in irreps_out[{k}]"
        )
    if out[k].ir not in in1[i].ir * in2[j].ir:
        raise ValueError(f"{where}: {in1[i].ir} x {in2[j].ir} does not contain {out[k].ir}")
    if not (path_weight >= 0 and math.isfinite(path_weight)):
        raise ValueError(f"{where}: path_weight must be finite and >= 0, got {path_weight}")

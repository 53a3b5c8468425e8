"""Linear maps of irreps, with one set of weights or one for each type.

With the type t_n of row n, blocks i of ``irreps_in`` and k of ``irreps_out`` that hold the same
irrep, u and w counting its multiplicities and m its components::

    out[n, k, w, m] = sum over paths (i, k) and u of  weight[t_n, path, u, w] * x[n, i, u, m]

which is e3nn's ``Linear``, and its ``FullyConnectedTensorProduct`` with scalars that depend on the
type alone, once path weights (and those scalars) are multiplied into ``weight``.

The sum of ``grad * out`` is linear in each of ``x``, ``weight`` and ``grad``. Two operators are its
derivatives: this map, which with the weights transposed is that with respect to ``x``, and
``dweight``. Their own derivatives are the same two, to any order. On a GPU the map is one Triton
kernel for all paths, types and layouts; ``dweight`` is matrix products of torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache, cached_property
from typing import Any

import torch
from e3nn.o3 import Irreps

from fastmlip import backend, layout
from fastmlip.ops.edge_order import assert_in_range
from fastmlip.ops.ladder import Rung, asked, keep, kept, ladder

Tensor = torch.Tensor
TYPES = 4  # that the reference takes at a time


@dataclass(frozen=True)
class LinearProblem:
    """``irreps_in -> irreps_out`` along ``instructions``: pairs of the numbers of two blocks.

    The weights ``[mul_in, mul_out]`` of the paths lie one behind the other, as in e3nn. Rows are in
    the layouts of :mod:`fastmlip.layout`.

    Raises:
        ValueError: naming the instruction and what is wrong with it, or a layout.
    """

    irreps_in: str
    irreps_out: str
    instructions: tuple[tuple[int, int], ...]
    layout_in: str = "mul_ir"
    layout_out: str = "mul_ir"

    def __post_init__(self) -> None:
        layout.check("layout_in", self.layout_in)
        layout.check("layout_out", self.layout_out)
        # cached here, because before Python 3.12 Dynamo cannot trace a cached_property's lock
        _ = self.paths, self.dim_in, self.dim_out, self.weight_numel, self.key

    @cached_property
    def paths(self) -> tuple[tuple[int, int, int, int, int, int], ...]:
        """``(in, mul_in, out, mul_out, dim, weight)`` of each path, where blocks and weights start;
        csrc/operators/irreps_linear.h names the same fields in the same order."""
        blocks_in, blocks_out = Irreps(self.irreps_in), Irreps(self.irreps_out)
        rows, weight = [], 0
        for number, (i, k) in enumerate(self.instructions):
            if not (0 <= i < len(blocks_in) and 0 <= k < len(blocks_out)):
                raise ValueError(f"instruction {number}: there is no path from block {i} to {k}")
            (mul_in, ir), (mul_out, ir_out) = blocks_in[i], blocks_out[k]
            if ir != ir_out:
                raise ValueError(f"instruction {number}: {ir} is not {ir_out}")
            start, end = blocks_in.slices()[i].start, blocks_out.slices()[k].start
            rows.append((start, mul_in, end, mul_out, ir.dim, weight))
            weight += mul_in * mul_out
        return tuple(rows)

    @cached_property
    def dim_in(self) -> int:
        return Irreps(self.irreps_in).dim

    @cached_property
    def dim_out(self) -> int:
        return Irreps(self.irreps_out).dim

    @cached_property
    def weight_numel(self) -> int:
        return sum(mul_in * mul_out for _, mul_in, _, mul_out, _, _ in self.paths)

    @cached_property
    def key(self) -> str:
        """This problem as a string, an argument of operators; :meth:`from_key` is the inverse."""
        return json.dumps(astuple(self))

    @staticmethod
    @cache
    def from_key(key: str) -> LinearProblem:
        irreps_in, irreps_out, instructions, *layouts = json.loads(key)
        return LinearProblem(irreps_in, irreps_out, tuple(map(tuple, instructions)), *layouts)

    def tables(self) -> Tensor:
        """What the C++ operator reads."""
        ir_mul = (int(one == "ir_mul") for one in (self.layout_in, self.layout_out))
        header = (self.dim_in, self.dim_out, self.weight_numel, len(self.paths), *ir_mul)
        return torch.tensor([*header, *(field for path in self.paths for field in path)])


def irreps_linear(
    x: Tensor,
    weight: Tensor,
    problem: LinearProblem,
    types: Tensor | None = None,
    tables: Tensor | None = None,
) -> Tensor:
    """The map of this page, ``[N, irreps_out.dim]`` in ``problem.layout_out``.

    Args:
        x: ``[N, irreps_in.dim]`` in ``problem.layout_in``, float32 or float64.
        weight: ``[num_types, problem.weight_numel]``, one row where ``types`` is not given; dtype
            of ``x``.
        problem: irreps and paths.
        types: at least N types, int64, in ``[0, num_types)``; more, as for ghost atoms, are not
            read.
        tables: ``problem.tables()``, where the caller keeps it.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected.
        RuntimeError: a type out of range.
    """
    _check(x, weight, problem, types)
    which = backend.choose(x)
    if which != "cpp":
        if types is not None:
            read = types if types.shape[0] == x.shape[0] else types[: x.shape[0]]
            assert_in_range(read, "types", weight.shape[0], "num_types")
        if which == "triton":
            rest = (types, problem.key, problem.dim_out, False)
            return _TRITON["apply"](x, weight, *rest)
        return reference(x, weight, problem, types)
    if tables is None:
        tables = problem.tables()
    return _LADDER["apply"](x, weight, types, tables, problem.dim_out, False)


def _check(x: Tensor, weight: Tensor, problem: LinearProblem, types: Tensor | None) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] != problem.dim_in:
        raise ValueError(
            f"x: expected shape [N, irreps_in.dim] with {problem.dim_in} columns, got "
            f"{tuple(x.shape)}"
        )
    if weight.dtype != x.dtype:
        raise TypeError(f"weight: expected {x.dtype} as x has, got {weight.dtype}")
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != problem.weight_numel:
        raise ValueError(
            f"weight: expected shape [num_types, weight_numel] with {problem.weight_numel} columns,"
            f" got {tuple(weight.shape)}"
        )
    if types is None:
        if weight.shape[0] != 1:
            raise ValueError(f"weight: expected one row without types, got {weight.shape[0]}")
    elif types.dtype != torch.int64:
        raise TypeError(f"types: expected int64, got {types.dtype}")
    elif types.dim() != 1 or types.shape[0] < x.shape[0]:
        raise ValueError(
            f"types: expected at least N = {x.shape[0]} entries, got {tuple(types.shape)}"
        )
    for name, other in (("weight", weight), ("types", types)):
        if other is not None and other.device != x.device:
            raise ValueError(f"{name}: expected device {x.device} as x has, got {other.device}")


def reference(
    x: Tensor, weight: Tensor, problem: LinearProblem, types: Tensor | None = None
) -> Tensor:
    """The formula of this page; differentiable by torch's own autograd to any order.

    Its largest tensor is ``[N, TYPES, mul, dim]`` of one path, whatever the number of types."""
    nodes, types = x.shape[0], x.new_zeros(1).long() if types is None else types
    out = x.new_zeros(nodes, problem.dim_out)
    x = x if problem.layout_in == "mul_ir" else layout.to_mul_ir(x, problem.irreps_in)
    kinds = torch.arange(weight.shape[0], device=x.device)
    for some, weights in zip(kinds.split(TYPES), weight.split(TYPES), strict=True):
        # rows of a type alone, so that a number that is not finite reaches no other
        mine = (types[:nodes, None] == some)[..., None, None]
        for start, mul_in, end, mul_out, dim, first in problem.paths:
            block = x[:, start : start + mul_in * dim].reshape(nodes, 1, mul_in, dim)
            w = weights[:, first : first + mul_in * mul_out].reshape(len(weights), mul_in, mul_out)
            of_each_type = torch.einsum("ntum,tuw->ntwm", torch.where(mine, block, 0), w)
            result = torch.where(mine, of_each_type, 0).sum(1).flatten(1)
            columns = (end, problem.dim_out - end - mul_out * dim)
            out = out + torch.nn.functional.pad(result, columns)
    return out if problem.layout_out == "mul_ir" else layout.to_ir_mul(out, problem.irreps_out)


# ---------------------------------------------------------------- the operators on a GPU


@backend.triton_op("fastmlip::irreps_linear", mutates_args=())
def _apply(
    x: Tensor, weight: Tensor, types: Tensor | None, problem: str, dim_out: int, transposed: bool
) -> Tensor:
    from fastmlip.kernels import irreps_linear as kernels

    return kernels.apply(x, weight, types, LinearProblem.from_key(problem), transposed)


@backend.triton_op("fastmlip::irreps_linear_dweight", mutates_args=())
def _dweight(
    x: Tensor, grad: Tensor, types: Tensor | None, problem: str, num_types: int, weight_numel: int
) -> Tensor:
    """``[num_types, weight_numel]``: a few types at a time, as in the reference."""
    described = LinearProblem.from_key(problem)
    if described.layout_in == "ir_mul":
        x = layout.to_mul_ir(x, described.irreps_in)
    if described.layout_out == "ir_mul":
        grad = layout.to_mul_ir(grad, described.irreps_out)
    rows, nodes = [], x.shape[0]
    for some in torch.arange(num_types, device=x.device).split(TYPES):
        blocks = [x.new_zeros(len(some), 0)]
        for start, mul_in, end, mul_out, dim, _ in described.paths:
            left = x.narrow(1, start, mul_in * dim).reshape(nodes, 1, mul_in, dim)
            if types is not None:
                mine = types.narrow(0, 0, nodes).unsqueeze(1) == some
                left = torch.where(mine.view(nodes, -1, 1, 1), left, 0)
            right = grad.narrow(1, end, mul_out * dim).reshape(nodes, mul_out, dim)
            blocks.append(torch.einsum("ntum,nwm->tuw", left, right).flatten(1))
        rows.append(torch.cat(blocks, 1))
    return torch.cat(rows)


# ---------------------------------------------------------------- derivatives
# ``about`` are the tables of the C++ operators or the key of the Triton operators


def _save(ctx, inputs, output) -> None:
    x, weight, types, about, _, transposed = inputs
    # x is for the gradient of weight alone: frozen models keep nothing of it
    keep(ctx, x if ctx.needs_input_grad[1] else None, weight, types, about)
    ctx.columns, ctx.transposed = x.shape[1], transposed


def _vjp(rungs, ctx, grad):
    x, weight, types, about = kept(ctx)
    wanted, dx, dweight = asked(ctx), None, None
    if wanted[0]:
        dx = rungs["apply"](grad, weight, types, about, ctx.columns, not ctx.transposed)
    if wanted[1]:
        ends = (grad, x) if ctx.transposed else (x, grad)
        dweight = rungs["dweight"](*ends, types, about, *weight.shape)
    return dx, dweight, None, None, None, None


def _save_dweight(ctx, inputs, output) -> None:
    keep(ctx, *inputs[:4])


def _dweight_vjp(rungs, ctx, h):
    x, grad, types, about = kept(ctx)
    wanted, dx, dgrad = asked(ctx), None, None
    if wanted[0]:
        dx = rungs["apply"](grad, h, types, about, x.shape[1], True)
    if wanted[1]:
        dgrad = rungs["apply"](x, h, types, about, grad.shape[1], False)
    return dx, dgrad, None, None, None, None


def _ladder(suffix: str) -> dict[str, Callable[..., Any]]:
    operators = torch.ops.fastmlip
    return ladder(
        {
            "apply": Rung(getattr(operators, f"irreps_linear{suffix}").default, _save, _vjp),
            "dweight": Rung(
                getattr(operators, f"irreps_linear_dweight{suffix}").default, _save_dweight,
                _dweight_vjp,
            ),
        }
    )  # fmt: skip


_TRITON = _ladder("")
if backend.load_extension() is None:

    @torch.library.register_fake("fastmlip::irreps_linear_cpu")
    def _(x, weight, types, tables, dim_out, transposed):
        return x.new_empty((x.shape[0], dim_out))

    @torch.library.register_fake("fastmlip::irreps_linear_dweight_cpu")
    def _(x, grad, types, tables, num_types, weight_numel):
        return x.new_empty((num_types, weight_numel))

    _LADDER = _ladder("_cpu")

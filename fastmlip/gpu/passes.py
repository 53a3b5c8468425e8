"""Every kernel with the operands of real models: its launches, and the work it cannot do without.

The launchers of ``fastmlip.kernels`` run on meta tensors and their launches are noted: what is
compiled is what would run.

Compulsory bytes: each operand read once, each result written once, index tables included; rows of
nodes are shared by ``EDGES_PER_NODE`` edges. FLOPs: what the formula on the operator's page needs,
an addition, a multiplication, a division, a root, an exponential or a sine as one each. Kernels do
more: functions take many instructions, and what is the same for all channels (M of the tensor
product) is computed by each lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.problem import TensorProductProblem

EDGES_PER_NODE = 40
NODES, EDGES = 7, 300  # of the meta tensors; kernels depend on neither
SPLINE_ROWS = 69


@dataclass(frozen=True)
class Pass:
    """One derivative order of an operator on one case."""

    operator: str
    case: str
    order: str
    calls: tuple[Any, ...]  # fastmlip.kernels._run.Call
    nbytes: float  # an edge (an atom for scale_shift, gate and irreps_linear)
    flops: float
    double: bool  # arithmetic in float64

    @property
    def name(self) -> str:
        return f"{self.operator} {self.case} {self.order}"


def passes(
    operator: str, case: str, dtype: torch.dtype = torch.float32, device: str = "meta"
) -> list[Pass]:
    """All derivative orders of a case of ``fastmlip.testing.OPERATORS``; ``dtype`` is a model's.
    Cases of radial_conv are those of tensor_product_conv, with weights that are splines."""
    from fastmlip.kernels._run import recorded
    from fastmlip.testing import OPERATORS

    found = []
    row = OPERATORS[_TABLE.get(operator, operator)].cases[case]
    orders = _ORDERS[operator](row, dtype, partial(_empty, device))
    for order, launch, nbytes, flops, double in orders:
        with recorded() as calls:
            launch()
        found.append(Pass(operator, case, order, tuple(calls), nbytes, flops, double))
    return found


def _empty(device: str, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, device=device, dtype=dtype)


Empty = Callable[..., torch.Tensor]
Orders = Iterator[tuple[str, Callable[[], Any], float, float, bool]]


# ---------------------------------------------------------------- each operator


def _tensor_product_conv(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import tensor_product_conv as kernels

    problem: TensorProductProblem = case.problem
    rows = partial(empty, dtype=dtype)
    x, grad = rows(NODES, problem.dim_in1), rows(NODES, problem.dim_out)
    a, w = rows(EDGES, problem.dim_in2), rows(EDGES, problem.weight_numel)
    operands = (x, a, w, _order(empty), problem)

    def nbytes(in1: int, edge: int, out: int, index: int = 16) -> float:
        node = (in1 * problem.dim_in1 + out * problem.dim_out) * dtype.itemsize + 8
        edges = edge * (problem.dim_in2 + problem.weight_numel) * dtype.itemsize + index
        return edges + node / EDGES_PER_NODE

    first, back, second = _flops(problem)
    double = dtype == torch.float64
    yield "forward", lambda: kernels.forward(*operands), nbytes(1, 1, 1), first, double
    yield (
        "backward", lambda: kernels.backward(grad, *operands), nbytes(2, 2, 1), back, double
    )  # fmt: skip
    yield (
        "double backward", lambda: kernels.double_backward(x, a, w, grad, *operands),
        nbytes(3, 3, 2, 32), second, double,
    )  # fmt: skip


def _flops(problem: TensorProductProblem) -> tuple[int, int, int]:
    """Of an edge, forward, backward and double backward, where its weights are there."""
    first, back, second = 0, 0, 0
    for p in problem.paths:
        terms = len(p.cg)
        m = 2 * len({(m1, m3) for m1, _, m3, _ in p.cg})
        z = 2 * len({(m1, m2) for m1, m2, *_ in p.cg})
        first += 2 * terms + p.mul * (p.d1 + m)
        back += p.mul * (2 * terms + 2 * z + 5 * p.d1)
        second += 4 * terms + p.mul * (2 * terms + 2 * m + 3 * z + 15 * p.d1)
    return first, back, second


def _radial_conv(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import radial_conv as kernels
    from fastmlip.ops import _spline as tables

    problem: TensorProductProblem = replace(case.problem, layout="ir_mul")
    rows = partial(empty, dtype=dtype)
    x, grad = rows(NODES, problem.dim_in1), rows(NODES, problem.dim_out)
    a, place = rows(EDGES, problem.dim_in2), rows(EDGES, 1)
    table = rows(tables.num_blocks(problem.weight_numel), SPLINE_ROWS, tables.BLOCK)
    operands = (x, a, place, table, empty(EDGES, dtype=torch.int64), _order(empty), problem)

    def nbytes(in1: int, edge: int, out: int, index: int = 24) -> float:  # the table is in cache
        node = (in1 * problem.dim_in1 + out * problem.dim_out) * dtype.itemsize + 8
        return edge * (problem.dim_in2 + 1) * dtype.itemsize + index + node / EDGES_PER_NODE

    first, back, second = _flops(problem)
    weights, double = problem.weight_numel, dtype == torch.float64
    yield (
        "forward", lambda: kernels.forward(*operands), nbytes(1, 1, 1), first + 15 * weights, double
    )  # fmt: skip
    yield (
        "backward", lambda: kernels.backward(grad, *operands),
        nbytes(2, 2, 1), back + 26 * weights, double,
    )  # fmt: skip
    yield (
        "double backward", lambda: kernels.double_backward(x, a, place, grad, *operands),
        nbytes(3, 3, 2, 48), second + 64 * weights, double,
    )  # fmt: skip


def _zbl(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import zbl as kernels

    problem = case.problem
    types, wide = len(problem.atomic_numbers), torch.float64
    length = empty(EDGES, dtype=dtype)
    normed = length if problem.normed else None
    cutoff = None if problem.normed else empty(types, types, dtype=wide)
    index, kinds = empty(2, EDGES, dtype=torch.int64), empty(NODES, dtype=torch.int64)
    rest = (normed, cutoff, index, kinds, empty(types, dtype=wide), empty(dtype=wide), problem.p)
    grad = empty(NODES, dtype=wide)
    each = dtype.itemsize * (2 if problem.normed else 1)
    for n in range(4):
        weight = length if n else None  # where a derivative has one, below the first it has none
        read = each + 16 + (dtype.itemsize if n else 0)
        flops = 33 + 22 * n
        yield (
            f"nodes, order {n}", partial(kernels.nodes, length, weight, *rest, n, NODES),
            read + 24 / EDGES_PER_NODE, flops + 1, True,
        )  # fmt: skip
        yield (
            f"edges, order {n}", partial(kernels.edges, grad, length, weight, *rest, n),
            read + dtype.itemsize + 16 / EDGES_PER_NODE, flops + 1, True,
        )  # fmt: skip


def _edge_embedding(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import edge_embedding as kernels
    from fastmlip.spherical_harmonics import gradient_terms

    wide, harmonics, roots = torch.float64, (case.l_max + 1) ** 2, case.num_bessels
    vec, w = empty(EDGES, 3, dtype=wide), empty(roots, dtype=wide)
    types = empty(2, EDGES, dtype=torch.int64) if case.types else None
    operands = (
        vec, w, empty(max(case.types, 1) ** 2, dtype=wide), types,
        empty(case.l_max + 1 + 4 * len(gradient_terms(case.l_max)), dtype=wide),
        case.l_max, case.p, case.factor, dtype == torch.float32,
    )  # fmt: skip
    attrs, embedding = empty(EDGES, harmonics, dtype=dtype), empty(EDGES, roots, dtype=dtype)
    grads = (None, None, attrs, embedding, None)
    wide_row = (harmonics + roots) * dtype.itemsize
    ends, terms = 16 if case.types else 0, len(gradient_terms(case.l_max))
    values = 16 + wide_row + dtype.itemsize
    back = 60 + 7 * terms + harmonics + 16 * roots
    yield (
        "forward", lambda: kernels.forward(*operands),
        24 + ends + values, 24 + 3 * terms + harmonics + 6 * roots, True,
    )  # fmt: skip
    yield (
        "backward", lambda: kernels.backward(grads, *operands), 48 + ends + wide_row, back, True
    )  # fmt: skip
    yield (
        "double backward", lambda: kernels.double_backward((vec, w), grads, *operands),
        72 + ends + wide_row + values, 3 * back, True,
    )  # fmt: skip


def _scale_shift(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import scale_shift as kernels

    wide = torch.float64
    x, types = empty(NODES, 1, dtype=dtype), empty(NODES, dtype=torch.int64)
    scales, shifts = (
        empty(n, 1, dtype=wide) if n else None for n in (case.num_scales, case.num_shifts)
    )
    grad, single = empty(NODES, 1, dtype=wide), dtype == torch.float32
    ends = 8 if max(case.num_scales, case.num_shifts) > 1 else 0
    size = dtype.itemsize
    yield (
        "forward", lambda: kernels.apply(x, types, scales, shifts, False), size + ends + 8, 2, True
    )  # fmt: skip
    yield (
        "backward", lambda: kernels.apply(grad, types, scales, None, single),
        8 + ends + size, 1, True,
    )  # fmt: skip
    if case.num_types > 1:  # otherwise the sums are torch's own
        yield (
            "sums", lambda: kernels.sums(grad, x, types, case.num_types), 16 + size, 3, True
        )  # fmt: skip


def _env_sum(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import env_sum as kernels

    rows, dims = partial(empty, dtype=dtype), case.dims
    blocks, columns, channels = 1 if case.shared else len(dims), sum(dims), case.channels
    w, a = rows(EDGES, blocks, channels), rows(EDGES, columns)
    grad, order = rows(NODES, columns, channels), _order(empty)
    edge = (blocks * channels + columns) * dtype.itemsize
    node = (columns * channels * dtype.itemsize + 8) / EDGES_PER_NODE
    work, double = columns * channels, dtype == torch.float64
    yield (
        "forward", lambda: kernels.forward(w, a, order, dims, NODES),
        edge + 8 + node, 2 * work, double,
    )  # fmt: skip
    yield (
        "backward", lambda: kernels.backward(grad, w, a, order, dims, NODES),
        2 * edge + 16 + node, 4 * work, double,
    )  # fmt: skip
    yield (
        "double backward", lambda: kernels.double_backward(w, a, grad, w, a, order, dims, NODES),
        3 * edge + 24 + 2 * node, 8 * work, double,
    )  # fmt: skip


def _contraction(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import contraction as kernels

    problem: TensorProductProblem = case.problem
    rows, channels = partial(empty, dtype=dtype), case.channels
    x, grad = (rows(EDGES, n, channels) for n in (problem.dim_in1, problem.dim_out))
    env, weight = rows(NODES, problem.dim_in2, channels), rows(problem.weight_numel, channels)
    operands = (x, env, weight, _order(empty), problem)

    def nbytes(in1: int, out: int, of_node: int, index: int = 16) -> float:
        row = channels * dtype.itemsize
        edge = (in1 * problem.dim_in1 + out * problem.dim_out) * row
        return edge + index + of_node * problem.dim_in2 * row / EDGES_PER_NODE

    # M is made once for all edges of a centre; kernels make its products edge by edge
    m = sum(len({(i, k) for i, _, k, _ in p.cg}) for p in problem.paths) * channels
    work, double = 2 * m, dtype == torch.float64
    yield "forward", lambda: kernels.forward(*operands), nbytes(1, 1, 1), work, double
    yield (
        "backward", lambda: kernels.backward(grad, *operands), nbytes(2, 1, 2), 2 * work, double
    )  # fmt: skip
    yield (
        "double backward",
        lambda: kernels.double_backward(x, env, weight, grad, *operands),
        nbytes(3, 2, 3, 24), 6 * work, double,
    )  # fmt: skip


def _symmetric_contraction(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import symmetric_contraction as kernels

    problem, channels, rows = case.problem, case.channels, partial(empty, dtype=dtype)
    terms, double = len(problem.terms), dtype == torch.float64
    x, grad = (rows(NODES, n, channels) for n in (problem.inputs, problem.outputs))
    c = rows(case.types, terms, channels)
    types, tables = (empty(n, dtype=torch.int64) for n in (NODES, len(problem.words)))
    row = channels * dtype.itemsize
    one, other = (n * row / EDGES_PER_NODE for n in (problem.inputs, problem.outputs))
    # an edge's share of a node's; coefficients and tables lie in cache
    pairs = len({row[:3] for row in problem.rows})
    products = len({row[1:] for row in problem.rows})
    value = 2 * (terms + pairs) * channels / EDGES_PER_NODE
    slope = (2 * terms + 4 * products) * channels / EDGES_PER_NODE
    for order, along in (("", None), (", along a direction", x)):
        more = 0.0 if along is None else 1.0
        yield (
            f"value{order}", partial(kernels.value, x, along, c, types, tables, problem.outputs),
            (1 + more) * one + other + 8 / EDGES_PER_NODE, (1 + more) * value, double,
        )  # fmt: skip
        yield (
            f"dx{order}", partial(kernels.dx, grad, x, along, c, types, tables),
            (2 + more) * one + other + 8 / EDGES_PER_NODE, (1 + more) * slope, double,
        )  # fmt: skip
        yield (
            f"dcoefficients{order}",
            partial(kernels.dcoefficients, grad, x, along, types, tables, case.types, terms),
            (1 + more) * one + other + 8 / EDGES_PER_NODE, (1 + more) * value, double,
        )  # fmt: skip


def _edge_vectors(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import edge_vectors as kernels

    wide, order = torch.float64, _order(empty)  # positions are, in a model of any dtype
    positions, grad = empty(NODES, 3, dtype=wide), empty(EDGES, 3, dtype=wide)
    node = (24 + 8) / EDGES_PER_NODE
    yield "forward", lambda: kernels.forward(positions, order, EDGES), 24 + 16 + node, 3, True
    yield (
        "backward", lambda: kernels.backward(grad, order, NODES), 24 + 16 + node + 8, 6, True
    )  # fmt: skip


def _spline(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import spline as kernels
    from fastmlip.ops import _spline as tables

    place, rows = empty(EDGES, 1, dtype=dtype), empty(EDGES, dtype=torch.int64)
    table = empty(tables.num_blocks(case.columns), case.rows, tables.BLOCK, dtype=dtype)
    grad, double = empty(EDGES, case.columns, dtype=dtype), dtype == torch.float64
    nbytes = (case.columns + 1) * dtype.itemsize + 8  # the table lies in cache
    yield (
        "forward", lambda: kernels.forward(place, rows, table, case.columns),
        nbytes, 11 * case.columns, double,
    )  # fmt: skip
    yield (
        "backward", lambda: kernels.backward(grad, place, rows, table, case.columns),
        nbytes, 13 * case.columns, double,
    )  # fmt: skip


def _gate(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import gate as kernels
    from fastmlip.ops.gate import dims

    segments, double = case.problem, dtype == torch.float64
    columns, dim_out = dims(segments)
    x, grad = empty(NODES, columns, dtype=dtype), empty(NODES, dim_out, dtype=dtype)
    size = dtype.itemsize
    yield (
        "forward", lambda: kernels.forward(x, segments, dim_out),
        (columns + dim_out) * size, 5 * columns, double,
    )  # fmt: skip
    yield (
        "backward", lambda: kernels.backward(grad, x, segments),
        (2 * columns + dim_out) * size, 10 * columns, double,
    )  # fmt: skip
    yield (
        "double backward", lambda: kernels.double_backward(x, grad, x, segments),
        (3 * columns + 2 * dim_out) * size, 20 * columns, double,
    )  # fmt: skip


def _irreps_linear(case: Any, dtype: torch.dtype, empty: Empty) -> Orders:
    from fastmlip.kernels import irreps_linear as kernels

    problem, double = case.linear, dtype == torch.float64
    weight = empty(max(case.types, 1), problem.weight_numel, dtype=dtype)
    types = empty(NODES, dtype=torch.int64) if case.types else None
    nbytes = (problem.dim_in + problem.dim_out) * dtype.itemsize + 8 * bool(case.types)
    flops = sum(2 * mul_in * mul_out * dim for _, mul_in, _, mul_out, dim, _ in problem.paths)
    for name, transposed in (("forward", False), ("backward", True)):
        x = empty(NODES, problem.dim_out if transposed else problem.dim_in, dtype=dtype)
        yield (
            name, partial(kernels.apply, x, weight, types, problem, transposed),
            nbytes, flops, double,
        )  # fmt: skip


def _order(empty: Empty) -> torch.Tensor:
    return empty(EdgeOrder.size(NODES, EDGES), dtype=torch.int64)


_ORDERS: dict[str, Callable[[Any, torch.dtype, Empty], Orders]] = {
    "tensor_product_conv": _tensor_product_conv,
    "radial_conv": _radial_conv,
    "edge_embedding": _edge_embedding,
    "zbl": _zbl,
    "scale_shift": _scale_shift,
    "env_sum": _env_sum,
    "contraction": _contraction,
    "spline": _spline,
    "symmetric_contraction": _symmetric_contraction,
    "edge_vectors": _edge_vectors,
    "gate": _gate,
    "irreps_linear": _irreps_linear,
}

_TABLE = {"radial_conv": "tensor_product_conv"}  # whose cases those of another operator are

# what a report shows unless it is asked for more: NequIP M, with types that have their own numbers
SHOWN = {
    "tensor_product_conv": ("nequip-M-hidden",),
    "radial_conv": ("nequip-M-hidden",),
    "edge_embedding": ("nequip-M",),
    "zbl": ("per-type cutoffs",),
    "scale_shift": ("per type",),
    "env_sum": ("l_max 2",),
    "contraction": ("l_max 2, 64 channels",),
    "spline": ("16 pairs of types",),
    "symmetric_contraction": ("mace medium",),
    "edge_vectors": ("sorted",),
    "gate": ("nequip-M",),
    "irreps_linear": ("nequip-M, self-connection",),
}
_PRODUCTS = (
    *(f"nequip-{size}-{layer}" for size in ("S", "M", "L", "XL")
      for layer in ("first", "hidden", "last")),
    "nequip-M-parity", "sevennet-0-hidden", "mace-medium",
)  # fmt: skip
# real irreps, and the cases that take other code paths
SWEEP = {
    "tensor_product_conv": _PRODUCTS,
    "radial_conv": _PRODUCTS,
    "edge_embedding": (
        "nequip-S", "nequip-M", "nequip-L", "nequip-XL", "allegro-radial", "pairs-of-types"
    ),
    "zbl": ("per-type cutoffs", "normed lengths", "p = 7.5", "p = 48, normed"),
    "scale_shift": ("per type", "one value", "shifts only", "scales of types, one shift"),
    "env_sum": ("l_max 2", "l_max 3", "one weight for all"),
    "contraction": (
        "l_max 1", "l_max 2, 64 channels", "l_max 2, last layer", "l_max 3", "both parities",
        "both parities, l_max 3", "l_max 4",
    ),
    "spline": ("16 pairs of types", "odd"),
    "symmetric_contraction": ("unused inputs and outputs", "mace small", "mace large"),
    "edge_vectors": ("sorted",),
    "gate": ("nequip-M", "both parities", "scalars only", "no scalars"),
    "irreps_linear": (
        "nequip-M, self-connection", "nequip-M, linear_2", "odd multiplicities", "types and high l"
    ),
}  # fmt: skip

"""Every rung of every Triton operator on cuda tensors without memory, for traces and compilers.

Autograd needs a device to run on, so each rung is called by itself; that the rungs are each other's
derivatives does not depend on the device and is tested under the interpreter.
"""

from dataclasses import dataclass, replace

import torch
from torch.export import Dim
from tracing import exported_on_gpu

from fastmlip.ops import _spline
from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.ops.gate import dims, key
from fastmlip.testing import OPERATORS

F32, F64, INT = torch.float32, torch.float64, torch.int64
NODES, EDGES = 7, 20
FREE = {0: Dim.DYNAMIC}


class Ladder(torch.nn.Module):
    """``rungs(fastmlip's operators, *inputs)``, the results as one tuple."""

    def __init__(self, rungs):
        super().__init__()
        self.rungs = rungs

    def forward(self, *inputs):
        found = self.rungs(torch.ops.fastmlip, *inputs)
        flat = []
        for result in found:
            flat += [result] if isinstance(result, torch.Tensor) else result
        return tuple(flat)


@dataclass
class Rungs:
    """``call(operators, *inputs)``, the shape and dtype of each input, and which sizes are free."""

    call: object
    inputs: tuple
    free: tuple

    def exported(self):
        """The program of all rungs on fake cuda tensors."""

        def inputs():
            return tuple(torch.empty(s, device="cuda", dtype=dtype) for s, dtype in self.inputs)

        # the inputs are the ``*inputs`` of forward
        return exported_on_gpu(Ladder(self.call), inputs, (self.free,))


ORDER = ((EdgeOrder.size(NODES, EDGES),), INT)


def tensor_product_conv():
    problem = OPERATORS["tensor_product_conv"].cases["nequip-S-hidden"].problem

    def call(op, x, a, w, order, grad, tables):
        rest = (order, tables, problem.key)
        return (
            op.tensor_product_conv(x, a, w, *rest),
            op.tensor_product_conv_backward(grad, x, a, w, *rest),
            op.tensor_product_conv_double_backward(x, a, w, grad, x, a, w, *rest),
        )

    columns = (problem.dim_in1, problem.dim_in2, problem.weight_numel, problem.dim_out)
    x, a, w, grad = (
        ((n, c), F32) for n, c in zip((NODES, EDGES, EDGES, NODES), columns, strict=True)
    )
    return Rungs(call, (x, a, w, ORDER, grad, ((9,), INT)), (FREE,) * 5 + (None,))


def radial_conv():
    problem = replace(
        OPERATORS["tensor_product_conv"].cases["nequip-S-hidden"].problem, layout="ir_mul"
    )

    def call(op, x, a, place, table, first_row, order, grad, tables):
        rest = (table, first_row, order, tables, problem.key)
        return (
            op.radial_conv(x, a, place, *rest),
            op.radial_conv_backward(grad, x, a, place, *rest),
            op.radial_conv_double_backward(x, a, place, grad, x, a, place, *rest),
        )

    table = (_spline.num_blocks(problem.weight_numel), 9, _spline.BLOCK)
    x, a, grad = (
        ((n, c), F32)
        for n, c in zip(
            (NODES, EDGES, NODES), (problem.dim_in1, problem.dim_in2, problem.dim_out), strict=True
        )
    )
    inputs = (x, a, ((EDGES, 1), F32), (table, F32), ((EDGES,), INT), ORDER, grad, ((9,), INT))
    return Rungs(call, inputs, (FREE, FREE, FREE, None, FREE, FREE, FREE, None))


def edge_embedding():
    l_max = 2

    def call(op, vec, roots, recip, types, table):
        operands = (vec, roots, recip, types, table, l_max, 6, 0.3, True)
        values = op.edge_embedding(*operands)
        some = (None, None, values[2], values[3], None)
        return (
            values,
            op.edge_embedding_backward(*some, *operands),
            op.edge_embedding_double_backward(vec, roots, *some, *operands),
        )

    size = 59  # of tables(2), which is made only while tracing: see test_a_trace_may_come_first
    inputs = (((EDGES, 3), F64), ((1, 8), F64), ((4,), F64), ((2, EDGES), INT), ((size,), INT))
    return Rungs(call, inputs, (FREE, None, None, {1: Dim.DYNAMIC}, None))


def zbl():
    def call(op, length, index, types, numbers, prefactor, cutoff, grad):
        some = (None, cutoff, index, types, numbers, prefactor, 6.0)
        found = []
        for order in range(4):
            weight = length if order else None
            nodes = types.shape[0]
            found.append(op.zbl(length, weight, None, *some, order, nodes, False)[0])
            found.append(op.zbl_backward(grad, length, weight, None, *some, order))
        return found

    inputs = (
        ((EDGES,), F32), ((2, EDGES), INT), ((NODES,), INT), ((3,), F64), ((1,), F64),
        ((3, 3), F64), ((NODES,), F64),
    )  # fmt: skip
    return Rungs(call, inputs, (FREE, {1: Dim.DYNAMIC}, FREE, None, None, None, FREE))


def scale_shift():
    def call(op, x, grad, types, scales, shifts):
        return (
            op.scale_shift(x, types, scales, shifts, False),
            op.scale_shift(grad, types, scales, None, True),
            op.scale_shift_sums(grad, x, types, scales.shape[0]),
        )

    x, grad, types = ((NODES, 1), F32), ((NODES, 1), F64), ((NODES + 2,), INT)
    values = ((3, 1), F64)
    return Rungs(call, (x, grad, types, values, values), (FREE,) * 3 + (None,) * 2)


def env_sum():
    dims, channels = [1, 3, 5], 48

    def call(op, w, a, order, grad):
        rest = (order, dims, grad.shape[0])
        return (
            op.env_sum(w, a, *rest),
            op.env_sum_backward(grad, w, a, *rest),
            op.env_sum_double_backward(w, a, grad, w, a, *rest),
        )

    w, a = ((EDGES, len(dims), channels), F32), ((EDGES, sum(dims)), F32)
    return Rungs(call, (w, a, ORDER, ((NODES, sum(dims), channels), F32)), (FREE,) * 4)


def contraction():
    case = OPERATORS["contraction"].cases["l_max 1"]
    problem = case.problem

    def call(op, x, env, weight, order, grad):
        rest = (order, problem.key)
        return (
            op.contraction(x, env, weight, *rest),
            op.contraction_backward(grad, x, env, weight, *rest),
            op.contraction_double_backward(x, env, weight, grad, x, env, weight, *rest),
        )

    dims = ((EDGES, problem.dim_in1), (NODES, problem.dim_in2), (problem.weight_numel,))
    x, env, weight, grad = (
        ((*rows, case.channels), F32) for rows in (*dims, (EDGES, problem.dim_out))
    )
    return Rungs(call, (x, env, weight, ORDER, grad), (FREE, FREE, None, FREE, FREE))


def spline():
    case = OPERATORS["spline"].cases["odd"]

    def call(op, place, first_row, table, grad):
        return (
            op.spline(place, first_row, table, case.columns),
            op.spline_backward(grad, place, first_row, table, case.columns),
        )

    table = (_spline.num_blocks(case.columns), case.rows, _spline.BLOCK)
    inputs = (((EDGES, 1), F32), ((EDGES,), INT), (table, F32), ((EDGES, case.columns), F32))
    return Rungs(call, inputs, (FREE, FREE, None, FREE))


def edge_vectors():
    def call(op, positions, order, grad):
        return (
            op.edge_vectors(positions, order, grad.shape[0]),
            op.edge_vectors_backward(grad, order, positions.shape[0]),
        )

    return Rungs(call, (((NODES, 3), F64), ORDER, ((EDGES, 3), F64)), (FREE,) * 3)


def symmetric_contraction():
    case = OPERATORS["symmetric_contraction"].cases["unused inputs and outputs"]
    problem, channels = case.problem, case.channels
    terms = len(problem.terms)

    def call(op, x, c, types, tables, grad):
        return [
            result
            for along in (None, x)
            for result in (
                op.symmetric_contraction(x, along, c, types, tables, problem.outputs),
                op.symmetric_contraction_dx(grad, x, along, c, types, tables),
                op.symmetric_contraction_dcoefficients(
                    grad, x, along, types, tables, c.shape[0], terms
                ),
            )
        ]

    x, c = ((NODES, problem.inputs, channels), F32), ((case.types, terms, channels), F32)
    rest = ((NODES + 2,), INT), ((len(problem.words),), INT)
    inputs = (x, c, *rest, ((NODES, problem.outputs, channels), F32))
    return Rungs(call, inputs, (FREE, None, FREE, None, FREE))


def gate():
    segments = OPERATORS["gate"].cases["both parities"].problem
    columns, dim_out = dims(segments)

    def call(op, x, grad, hx):
        return (
            op.gate(x, key(segments), dim_out),
            op.gate_backward(grad, x, key(segments)),
            op.gate_double_backward(hx, grad, x, key(segments)),
        )

    x, grad = ((NODES, columns), F32), ((NODES, dim_out), F32)
    return Rungs(call, (x, grad, x), (FREE,) * 3)


def irreps_linear():
    problem = OPERATORS["irreps_linear"].cases["odd multiplicities"].linear

    def call(op, x, weight, types, grad):
        rest = (types, problem.key)
        return (
            op.irreps_linear(x, weight, *rest, problem.dim_out, False),
            op.irreps_linear(grad, weight, *rest, problem.dim_in, True),
            op.irreps_linear(x, weight.narrow(0, 0, 1), None, problem.key, problem.dim_out, False),
            op.irreps_linear_dweight(x, grad, *rest, weight.shape[0], problem.weight_numel),
        )

    x, grad = ((NODES, problem.dim_in), F32), ((NODES, problem.dim_out), F32)
    weight, types = ((3, problem.weight_numel), F32), ((NODES,), INT)
    return Rungs(call, (x, weight, types, grad), (FREE, None, FREE, FREE))


RUNGS = {
    make.__name__: make
    for make in (
        tensor_product_conv, radial_conv, edge_embedding, zbl, scale_shift, env_sum, contraction,
        spline, symmetric_contraction, edge_vectors, gate, irreps_linear,
    )
}  # fmt: skip
# what each kernel writes; of these an operand that is None is not there
WRITTEN = {
    "_pack_kernel": {"out"},
    "_tensor_product_conv_fwd_kernel": {"out"},
    "_tensor_product_conv_bwd_kernel": {"dx", "da", "dw"},
    "_radial_conv_fwd_kernel": {"out"},
    "_radial_conv_bwd_kernel": {"dx", "da", "dplace"},
    "_edge_embedding_kernel": {
        "length", "norm", "attrs", "embedding", "cutoff", "d_vec", "d_roots"
    },
    "_zbl_fwd_kernel": {"out"},
    "_zbl_bwd_kernel": {"out"},
    "_scale_shift_fwd_kernel": {"out"},
    "_scale_shift_sums_kernel": {"dscales", "dshifts"},
    "_env_sum_fwd_kernel": {"out"},
    "_env_sum_bwd_kernel": {"dw", "da"},
    "_contraction_edges_kernel": {"out"},
    "_contraction_nodes_kernel": {"denv", "dweight"},
    "_spline_fwd_kernel": {"out"},
    "_spline_bwd_kernel": {"dplace"},
    "_symmetric_contraction_kernel": {"out"},
    "_symmetric_contraction_terms_kernel": {"out"},
    "_edge_vectors_fwd_kernel": {"out"},
    "_edge_vectors_bwd_kernel": {"out"},
    "_gate_kernel": {"out", "of_grad"},
    "_irreps_linear_kernel": {"out"},
}  # fmt: skip
# whose programs are as many as there are coefficients, whatever the number of nodes
OF_TERMS = {"_symmetric_contraction_terms_kernel"}

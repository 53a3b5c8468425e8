"""irreps_linear: every row of the table against the reference, and e3nn's modules through it."""

from functools import partial

import pytest
import torch
from e3nn import o3
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmlip import nn, ops, use_backend
from fastmlip.integrations.linear import FoldedLinear, TypedLinear
from fastmlip.ops.irreps_linear import LinearProblem, reference
from fastmlip.testing import OPERATORS, assert_close, derivatives, poison_empty

OP = OPERATORS["irreps_linear"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OP.cases)
def test_all_derivatives_match_the_reference(name, dtype):
    case = OP.cases[name]
    inputs = OP.make_inputs(case, torch.float32)
    with poison_empty():
        got = derivatives(partial(OP.op, problem=case.problem), inputs.to(dtype), 2)
    want = derivatives(partial(OP.reference, problem=case.problem), inputs.to(torch.float64), 2)
    for one, other in zip(got, want, strict=True):
        assert one.value.dtype == dtype
        assert_close(one.value, other.value, one.order, f"{name}: {one.name}")


@pytest.mark.parametrize("name", ["types and high l", "several paths to a block"])
@pytest.mark.parametrize(("nodes", "ghosts"), [(0, 0), (0, 2), (1, 0), (50, 3), (301, 0)])
def test_sizes(name, nodes, ghosts):
    case = OP.cases[name]
    inputs = OP.make_inputs(case, nodes=nodes, ghosts=ghosts)
    got = derivatives(partial(OP.op, problem=case.problem), inputs, 2)
    want = derivatives(partial(OP.reference, problem=case.problem), inputs, 2)
    for one, other in zip(got, want, strict=True):
        assert_close(one.value, other.value, 1, one.name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_panels_to_a_task(dtype):
    """Of so many rows that a thread takes all columns, not whole vectors of them, at once."""
    problem = LinearProblem("21x0e+9x1o+3x0e", "70x0e+37x1o", ((0, 0), (1, 1), (2, 0)))
    x = torch.randn(3001, problem.dim_in, dtype=torch.float64)
    weight = torch.randn(2, problem.weight_numel, dtype=torch.float64)
    types = torch.randint(2, (3001,))
    grad = torch.randn(3001, problem.dim_out, dtype=torch.float64)
    want, want_dx = _with_gradient(partial(reference, problem=problem), x, weight, types, grad)
    own = x.to(dtype), weight.to(dtype), types, grad.to(dtype)
    got, dx = _with_gradient(partial(ops.irreps_linear, problem=problem), *own)
    assert_close(got, want, 0)
    assert_close(dx, want_dx, 1)


def _with_gradient(function, x, weight, types, grad):
    x = x.clone().requires_grad_()
    out = function(x, weight, types=types)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(
    ("irreps_in", "irreps_out"),
    [("8x0e+5x1o+3x2e", "12x0e+4x1o+3x2e"), ("3x1e+2x0e+4x1e", "2x1e+3x1e+5x0e+1x3o")],
)
def test_it_is_e3nns_linear(irreps_in, irreps_out, backend):
    linear = o3.Linear(irreps_in, irreps_out).double().requires_grad_(False)
    x = torch.randn(11, linear.irreps_in.dim, dtype=torch.float64)
    with use_backend(backend):
        assert_close(FoldedLinear(linear)(x, linear), linear(x), 0)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_it_is_e3nns_product_with_scalars_of_a_type(backend):
    sc = o3.FullyConnectedTensorProduct("8x0e+5x1o+3x2e", "6x0e", "9x0e+5x1o+2x2e").double()
    sc.requires_grad_(False)
    x, v = torch.randn(11, sc.irreps_in1.dim).double(), torch.randn(4, 6).double()
    types = torch.randint(4, (13,))
    with use_backend(backend):
        got = TypedLinear(sc)(x, sc, v, types)
    assert_close(got, sc(x, v[types[:11]]), 0)


def test_strides_opcheck_and_graphs():
    case = OP.cases["types and high l"]
    x, weight, types = OP.make_inputs(case)
    strided = x.t().contiguous().t(), weight.t().contiguous().t(), types.repeat(2, 1).t()[:, 0]
    assert torch.equal(
        ops.irreps_linear(strided[0], strided[1], case.linear, strided[2]),
        ops.irreps_linear(x, weight, case.linear, types),
    )
    x.requires_grad_()
    tables, columns = case.linear.tables(), case.linear.dim_out
    torch.library.opcheck(
        torch.ops.fastmlip.irreps_linear_cpu, (x, weight, types, tables, columns, False)
    )
    module = nn.IrrepsLinear(
        case.linear.irreps_in, case.linear.irreps_out, case.linear.instructions
    )
    compiled = torch.compile(
        lambda *operands: module(*operands).square().sum(),
        fullgraph=True, dynamic=True, backend="aot_eager",
    )  # fmt: skip
    for nodes in (37, 0, 3):
        x, weight, types = OP.make_inputs(case, nodes=nodes)
        x.requires_grad_()
        (got,) = torch.autograd.grad(compiled(x, weight, types), x)
        (want,) = torch.autograd.grad(reference(x, weight, case.linear, types).square().sum(), x)
        assert_close(got, want, 1)


def test_frozen_weights_keep_no_rows_for_the_backward_pass():
    case = OP.cases["types and high l"]
    x, weight, types = OP.make_inputs(case)
    for trained in (False, True):
        out = ops.irreps_linear(
            x.requires_grad_(), weight.requires_grad_(trained), case.linear, types
        )
        assert (out.grad_fn.saved_tensors[0] is not None) == trained


CASE = OP.cases["types and high l"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(37, 3).double()}, ValueError, "x: expected shape"),
        ({"x": torch.zeros(37, 61).half()}, TypeError, "x: expected float32 or float64"),
        ({"weight": torch.zeros(5, 3).double()}, ValueError, "weight: expected shape"),
        ({"weight": torch.zeros(5, 14)}, TypeError, "weight: expected torch.float64"),
        ({"types": None}, ValueError, "weight: expected one row without types, got 5"),
        ({"types": torch.zeros(36, dtype=torch.int64)}, ValueError, "types: expected at least N"),
        ({"types": torch.zeros(37)}, TypeError, "types: expected int64"),
        ({"types": torch.full((37,), 5)}, RuntimeError, r"types\[0\] = 5 is out of range"),
        ({"types": torch.full((37,), -1)}, RuntimeError, r"types\[0\] = -1 is out of range"),
    ],
)
def test_bad_arguments(changes, error, message):
    operands = OP.arguments(OP.make_inputs(CASE), CASE) | changes
    with pytest.raises(error, match=message):
        ops.irreps_linear(**operands)


@pytest.mark.parametrize("value", [5, -1])
def test_the_reference_refuses_types_out_of_range(value):
    operands = OP.arguments(OP.make_inputs(CASE), CASE) | {"types": torch.full((37,), value)}
    with use_backend("reference"), pytest.raises(RuntimeError, match=r"types: .*num_types"):
        ops.irreps_linear(**operands)


@pytest.mark.parametrize(
    ("instructions", "message"),
    [(((0, 0),), "instruction 0: 0e is not 1o"), (((1, 0), (2, 0)), "instruction 1: there is")],
)
def test_bad_instructions(instructions, message):
    with pytest.raises(ValueError, match=message):
        LinearProblem("2x0e+3x1o", "4x1o", instructions)


class Largest(TorchDispatchMode):
    """The entries of the largest tensor that torch makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor):
                self.entries = max(self.entries, t.numel())
        return result


def test_memory_of_the_reference_does_not_grow_with_the_number_of_types():
    """It is what a GPU runs: a table of [N, types, mul, dim] took gigabytes."""
    problem, nodes, kinds = LinearProblem("16x0e+8x2e", "16x0e+8x2e", ((0, 0), (1, 1))), 50, 64
    x = torch.randn(nodes, problem.dim_in, dtype=torch.float64)
    weight = torch.randn(kinds, problem.weight_numel, dtype=torch.float64, requires_grad=True)
    types = torch.arange(nodes) % kinds
    grad = torch.randn(nodes, problem.dim_out, dtype=torch.float64)
    with Largest() as seen:
        out, dx = _with_gradient(partial(reference, problem=problem), x, weight, types, grad)
    assert seen.entries <= 4 * nodes * 8 * 5
    for n in (0, 17, 49):
        own = weight[n % kinds, None]
        alone = _with_gradient(
            partial(reference, problem=problem), x[n, None], own, None, grad[n, None]
        )
        assert_close(out[n, None], alone[0], 0)
        assert_close(dx[n, None], alone[1], 1)

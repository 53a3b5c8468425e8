"""pair_linear: every row of the table against the reference, and which gradients a pass makes."""

from functools import partial

import pytest
import torch

from fastmlip import ops, use_backend
from fastmlip.ops.pair_linear import reference
from fastmlip.testing import OPERATORS, assert_close, derivatives, poison_empty

OP = OPERATORS["pair_linear"]
CASE = OP.cases["odd"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OP.cases)
def test_all_derivatives_match_the_reference(name, dtype):
    inputs = OP.make_inputs(OP.cases[name], torch.float32)
    with poison_empty():
        got = derivatives(partial(OP.op, problem=None), inputs.to(dtype), 3)
    want = derivatives(partial(OP.reference, problem=None), inputs.to(torch.float64), 3)
    for one, other in zip(got, want, strict=True):
        assert one.value.dtype == dtype
        assert_close(one.value, other.value, one.order, f"{name}: {one.name}")


@pytest.mark.parametrize("edges", [0, 1, 2, 63, 64, 65, 129, 1000])
def test_sizes(edges):
    inputs = OP.make_inputs(CASE, edges=edges)
    got = derivatives(ops.pair_linear, inputs, 2)
    want = derivatives(reference, inputs, 2)
    for one, other in zip(got, want, strict=True):
        assert_close(one.value, other.value, 1, one.name)


def test_strides_opcheck_and_graphs():
    x, weight, pair = OP.make_inputs(CASE)
    strided = x.t().contiguous().t(), weight.t().contiguous().t(), pair.repeat(2, 1).t()[:, 0]
    assert torch.equal(ops.pair_linear(*strided), ops.pair_linear(x, weight, pair))
    grad = torch.randn(150, 101, dtype=x.dtype)
    operators = torch.ops.fastmlip
    for operator, operands in (
        (operators.pair_linear_cpu, (x, weight)),
        (operators.pair_linear_dx_cpu, (weight, grad)),
        (operators.pair_linear_dweight_cpu, (x, grad)),
    ):
        torch.library.opcheck(operator, (*(t.clone().requires_grad_() for t in operands), pair))
    compiled = torch.compile(
        lambda *operands: ops.pair_linear(*operands).square().sum(),
        fullgraph=True, dynamic=True, backend="aot_eager",
    )  # fmt: skip
    for edges in (150, 0, 3):
        x, weight, pair = OP.make_inputs(CASE, edges=edges)
        operands = x.requires_grad_(), weight.requires_grad_()
        got = torch.autograd.grad(compiled(*operands, pair), operands)
        want = torch.autograd.grad(reference(*operands, pair).square().sum(), operands)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, 1)


def test_a_pass_makes_the_gradients_it_is_asked_for(monkeypatch):
    """Forces of a model that can be trained need no gradient of its weights."""
    x, weight, pair = OP.make_inputs(CASE)
    leaf = weight.requires_grad_()

    def operators_of(inputs):
        out = ops.pair_linear(x.requires_grad_() * 1, leaf * 1, pair).sum()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            torch.autograd.grad(out, inputs)
        return {
            event.key.removeprefix("fastmlip::pair_linear_")
            for event in seen.key_averages()
            if event.key.startswith("fastmlip")
        }

    assert operators_of([x]) == {"dx_cpu"}
    assert operators_of([leaf]) == {"dweight_cpu"}
    assert operators_of([x, leaf]) == {"dx_cpu", "dweight_cpu"}
    direct = ops.pair_linear(x, leaf, pair).sum()
    for inputs in ([x], [leaf], [x, leaf]):  # leaves themselves
        got = torch.autograd.grad(direct, inputs, retain_graph=True)
        want = torch.autograd.grad(reference(x, leaf, pair).sum(), inputs)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, 1)


def test_rows_that_stand_for_no_edge_have_no_gradient():
    x, weight, pair = OP.make_inputs(CASE)
    (dx,) = torch.autograd.grad(ops.pair_linear(x.requires_grad_(), weight, pair).sum(), x)
    standing = torch.zeros(150, dtype=torch.bool)
    standing[pair] = True
    assert (dx[~standing] == 0).all() and (dx[standing] != 0).any(1).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(150).double()}, ValueError, "x: expected shape"),
        ({"x": torch.zeros(150, 13).half()}, TypeError, "x: expected float32 or float64"),
        ({"weight": torch.zeros(5, 3).double()}, ValueError, "weight: expected a row for each"),
        ({"weight": torch.zeros(13, 3)}, TypeError, "weight: expected torch.float64"),
        ({"edge_pair": torch.zeros(150)}, TypeError, "edge_pair: expected int64"),
        ({"edge_pair": torch.arange(149)}, ValueError, "edge_pair: expected shape"),
        ({"edge_pair": torch.full((150,), 150)}, RuntimeError, r"edge_pair\[0\] = 150 is out"),
        ({"edge_pair": torch.full((150,), -1)}, RuntimeError, r"edge_pair\[0\] = -1 is out"),
        ({"edge_pair": torch.arange(150).roll(1)}, RuntimeError, "expected it to stand for its"),
    ],
)
def test_bad_arguments(changes, error, message):
    operands = OP.arguments(OP.make_inputs(CASE), CASE) | changes
    with pytest.raises(error, match=message):
        ops.pair_linear(**operands)


def test_the_reference_backend():
    inputs = OP.make_inputs(CASE)
    with use_backend("reference"):
        assert torch.equal(ops.pair_linear(*inputs), reference(*inputs))

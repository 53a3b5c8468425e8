"""Eager calls of the operators: what is recorded, and what a profiler sees."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fastmlip.testing import OPERATORS, make_inputs

OP = OPERATORS["tensor_product_conv"]
CASE = OP.cases["path-weights"]


def conv_and_gradient():
    x, *rest = make_inputs(CASE)
    out = OP.op(x.requires_grad_(), *rest, CASE.problem)
    return torch.autograd.grad(out.sum(), x)[0]


def test_a_profiler_sees_the_operators_by_name():
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        conv_and_gradient()
    names = {event.key for event in seen.key_averages()}
    assert "fastmlip::tensor_product_conv_cpu" in names
    assert "fastmlip::tensor_product_conv_backward_cpu" in names


def test_nothing_is_recorded_without_grad():
    x, *rest = make_inputs(CASE)
    with torch.no_grad():
        assert OP.op(x.requires_grad_(), *rest, CASE.problem).grad_fn is None
    assert OP.op(x.detach(), *rest, CASE.problem).grad_fn is None


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_modes_without_gradients_give_the_same_numbers(mode):
    inputs = make_inputs(CASE)
    with getattr(torch, mode)():
        got = OP.op(*inputs, CASE.problem)
    assert torch.equal(got, OP.op(*inputs, CASE.problem))


@pytest.mark.parametrize("name", OPERATORS)
def test_lazy_tensors_and_transforms_of_torch(name):
    """Views with a sign bit and zeros without memory are read as what they mean; vmap works, and
    what would silently lose a derivative is refused."""
    table = OPERATORS[name]
    case = next(iter(table.cases.values()))
    x, *rest = table.make_inputs(case)
    problem = getattr(case, "problem", case)

    def op(x):
        return table.op(x, *rest, problem=problem)

    want = op(x)
    assert torch.equal(op(torch._neg_view(-x)), want)
    lazy = torch._efficientzerotensor(x.shape, dtype=x.dtype)
    assert torch.equal(op(lazy), op(torch.zeros_like(x)))
    assert torch.equal(torch.func.vmap(op)(torch.stack([x, x]))[1], want)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(op, (x,), (x,))

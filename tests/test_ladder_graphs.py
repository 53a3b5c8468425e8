"""What others do with graphs of the operators: checkpoints, hooks, compiled backward passes,
gradients that are not there."""

from contextlib import nullcontext

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from fastmlip.testing import OPERATORS, nonlinear_chain

ROWS = [(name, row) for name in OPERATORS for row in list(OPERATORS[name].cases)[:3]] + [
    ("radial_conv", "nequip-M-hidden, spline"),
    ("zbl", "normed lengths"),
]


def of(name, row):
    operator = OPERATORS[name]
    inputs = operator.make_inputs(operator.cases[row], **operator.small)
    return operator.functions(row)[0], inputs


def same(got, want):
    for actual, expected in zip(got, want, strict=True):
        assert torch.equal(actual.value, expected.value), actual.name


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_under_a_checkpoint(name, row):
    """One that recomputes what a backward pass reads, when it reads it, and once."""
    op, inputs = of(name, row)

    def recomputed(*operands):
        return checkpoint(op, *operands, use_reentrant=False)

    same(nonlinear_chain(recomputed, inputs), nonlinear_chain(op, inputs))


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_with_hooks_on_saved_tensors(name, row):
    """In a backward pass each saved tensor is read once: a read may move it from disk or a GPU."""
    op, inputs = of(name, row)
    reads = []

    def pack(tensor):
        reads.append(0)
        return len(reads) - 1, tensor.clone()

    def unpack(packed):
        reads[packed[0]] += 1
        return packed[1]

    want = nonlinear_chain(op, inputs, order=1)
    with saved_tensors_hooks(pack, unpack):
        same(nonlinear_chain(op, inputs, order=1), want)
    assert max(reads) == 1
    with saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        same(nonlinear_chain(op, inputs), nonlinear_chain(op, inputs))


FEW = [(name, next(iter(OPERATORS[name].cases))) for name in OPERATORS] + ROWS[-2:-1]


@pytest.mark.parametrize(("name", "row"), FEW)
def test_compiled_autograd(name, row):
    """The backward passes of an energy and of a loss of forces, as compiled graphs of their own."""
    op, inputs = of(name, row)

    def gradients(context):
        leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
        wanted = [t for t in leaves if t.is_floating_point()]
        energy = op(*leaves).sin().sum()
        forces = torch.autograd.grad(energy, wanted, create_graph=True, materialize_grads=True)
        loss = sum(f.cos().sum() for f in forces if f.requires_grad)
        with context():
            energy.backward(retain_graph=True)
            loss.backward()
        return [t.grad for t in wanted]

    def compiled():
        return compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True))

    for got, want in zip(gradients(compiled), gradients(nullcontext), strict=True):
        assert (got is None) is (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


class Ends(torch.autograd.Function):
    """A function through which no gradient passes, and that says so with None, not zeros."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_that_are_not_there(name, level):
    """In every backward pass, one after the other: None or zeros, and no error."""
    op, inputs = of(name, next(iter(OPERATORS[name].cases)))
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
    wanted = [t for t in leaves if t.is_floating_point()]
    values = [op(*leaves)]
    for _ in range(level):
        values = torch.autograd.grad(
            sum(v.sin().sum() for v in values if v.requires_grad), wanted, create_graph=True,
            materialize_grads=True,
        )  # fmt: skip
    for cut in values:
        if cut.requires_grad:
            grads = torch.autograd.grad(
                Ends.apply(cut).sum(), wanted, allow_unused=True, retain_graph=True
            )
            assert all(g is None or not g.any() for g in grads)

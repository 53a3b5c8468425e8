"""Derivatives in a graph where nothing is constant: every operator in an energy that is a nonlinear
function of it, differentiated three times as training does.

Without ``TRITON_INTERPRET`` the C++ kernels run, and this file starts itself again with it for the
Triton ones.
"""

from functools import partial

import pytest
import torch

from fastmlip import backend, ops, use_backend
from fastmlip.ops.radial_conv import radial_conv, reference
from fastmlip.testing import OPERATORS, assert_close, nonlinear_chain, poison_empty
from fastmlip.testing.process import run_interpreted

SLACK = 10  # three derivatives of nonlinear functions, each rounded
CONSTANT = {"radial_conv": ("weight", "hidden")}  # the table gives them no gradient
INTERPRETED = backend.interpreting()
ROWS = [
    pytest.param(name, row, marks=pytest.mark.slow if row in operator.slow else ())
    for name, operator in OPERATORS.items()
    for row in (operator.triton if INTERPRETED else operator.cases)
]


def inputs_of(name, row):
    operator = OPERATORS[name]
    return operator.make_inputs(operator.cases[row], **operator.small)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_three_nonlinear_derivatives(name, row):
    op, plain = OPERATORS[name].functions(row)
    inputs = inputs_of(name, row)
    with use_backend("triton" if INTERPRETED else "cpp"), poison_empty():
        got = nonlinear_chain(op, inputs)
    for actual, truth in zip(got, nonlinear_chain(plain, inputs), strict=True):
        assert_close(actual.value, truth.value, truth.order, f"{name} {truth.name}", SLACK)


if not INTERPRETED:

    def test_three_nonlinear_derivatives_of_the_kernels_under_the_interpreter():
        pytest.importorskip("triton")
        run_interpreted(__file__)

    @pytest.mark.parametrize("row", ["deep network", "odd multiplicities, spline", "own weights"])
    def test_three_nonlinear_derivatives_of_trained_weights(row):
        problem = OPERATORS["radial_conv"].cases[row].problem
        inputs = inputs_of("radial_conv", row)

        def trained(function, *operands):
            named = inputs._replace(**dict(zip(inputs._fields, operands, strict=True)))._asdict()
            chosen, hidden = problem.named(named.pop("chosen")), named.pop("hidden")
            hidden = hidden if problem.depth else None
            return function(**named, **chosen, hidden=hidden, problem=problem.product)

        got = nonlinear_chain(partial(trained, radial_conv), inputs)
        truths = nonlinear_chain(partial(trained, reference), inputs)
        for actual, truth in zip(got, truths, strict=True):
            assert_close(actual.value, truth.value, truth.order, truth.name, SLACK)

    @pytest.mark.parametrize("name", OPERATORS)
    @pytest.mark.parametrize("which", ["cpp", "reference"])
    def test_each_derivative_is_the_slope_of_the_one_before(name, which):
        """Along a random direction, against central differences, which know no formula."""
        op, _ = OPERATORS[name].functions(next(iter(OPERATORS[name].cases)))
        inputs, sizes, step = inputs_of(name, next(iter(OPERATORS[name].cases))), {}, 1e-4
        random = torch.Generator().manual_seed(7)
        floats = {
            n: t for n, t in inputs._asdict().items()
            if t.is_floating_point() and n not in CONSTANT.get(name, ())
        }  # fmt: skip
        along = {
            n: torch.randn(t.shape, generator=random, dtype=t.dtype) for n, t in floats.items()
        }

        def chain(steps):
            moved = {n: t + steps * step * along[n] for n, t in floats.items()}
            found = nonlinear_chain(op, inputs._replace(**moved), sizes=sizes)
            return {d.name: d.value for d in found}

        with use_backend(which):
            here, up, down, up2, down2 = (chain(steps) for steps in (0, 1, -1, 2, -2))
        for level in (1, 2, 3):
            energy = f"energy{level}"
            slope = sum((here[f"chain{level}_{n}"] * d).sum() for n, d in along.items())
            difference = 8 * (up[energy] - down[energy]) - (up2[energy] - down2[energy])
            torch.testing.assert_close(
                slope, difference / (12 * step), rtol=1e-6, atol=1e-6, msg=f"{energy} of {name}"
            )

    @pytest.mark.parametrize("name", OPERATORS)
    def test_the_last_derivative_leaves_the_graph_of_its_operands_alone(name):
        """Without ``create_graph`` a derivative frees its own graph, and nothing before it."""
        row = next(iter(OPERATORS[name].cases))
        op, _ = OPERATORS[name].functions(row)
        leaves = [t.requires_grad_() if t.is_floating_point() else t for t in inputs_of(name, row)]
        operands = [t * t.exp() if t.is_floating_point() else t for t in leaves]
        floats = [t for t in operands if t.is_floating_point()]
        with use_backend("cpp"):
            values = [op(*operands)]
            for level in range(3):
                size = max(v.detach().abs().max() for v in values if v.numel())
                values = torch.autograd.grad(
                    sum((v / size).sin().sum() for v in values), floats, create_graph=level < 2,
                    materialize_grads=True,
                )  # fmt: skip
            sum(t.sum() for t in floats).backward()

    def test_a_derivative_that_is_not_there_is_refused_by_name():
        """Of all operators ZBL alone ends, after the third: its page says so."""
        inputs = inputs_of("zbl", "water")
        op, _ = OPERATORS["zbl"].functions("water")
        with pytest.raises(NotImplementedError, match="ZBL has no derivatives beyond the order 3"):
            nonlinear_chain(op, inputs, order=4)

    def test_every_operator_of_the_package_is_in_the_table():
        without_gradients = {"edge_order", "edge_pair"}
        of_other_ranks = {"ghost_exchange"}  # linear; tests/test_ghost_exchange.py
        assert set(OPERATORS) == set(ops.__all__) - without_gradients - of_other_ranks

"""spline: every row against the reference, the order of edges, what is not finite, errors."""

from functools import partial

import pytest
import torch

from fastmlip import ops
from fastmlip.ops import _spline
from fastmlip.testing import OPERATORS, assert_close, assert_same_derivatives, poison_empty

OP = OPERATORS["spline"]


@pytest.mark.parametrize(("name", "dtype"), OP.rows(torch.float32, torch.float64))
def test_all_derivatives_match_the_reference(name, dtype):
    row = OP.cases[name]
    op, reference = (partial(f, problem=row) for f in (OP.op, OP.reference))
    with poison_empty():
        assert_same_derivatives(op, reference, OP.make_inputs(row, dtype), slack=3)


@pytest.mark.parametrize("edges", [0, 1, 63, 64, 65, 129])
def test_any_number_of_edges(edges):
    row = OP.cases["odd"]
    op, reference = (partial(f, problem=row) for f in (OP.op, OP.reference))
    with poison_empty():
        assert_same_derivatives(op, reference, OP.make_inputs(row, edges=edges), order=2, slack=3)


def test_an_edge_gets_the_same_bits_wherever_it_stands():
    row = OP.cases["16 pairs of types"]
    inputs, table = OP.make_inputs(row, torch.float32), row.table(torch.float32)
    shuffled = torch.randperm(150, generator=torch.manual_seed(2))

    def run(place, first_row):
        place = place.clone().requires_grad_()
        out = ops.spline(place, first_row, table, row.columns)
        return out.detach(), *torch.autograd.grad(out.square().sum(), place)

    straight = run(*inputs)
    mixed = run(inputs.place[shuffled], inputs.first_row[shuffled])
    for a, b in zip(straight, mixed, strict=True):
        assert torch.equal(a[shuffled], b)


def test_a_bad_place_stays_in_its_row():
    row = OP.cases["odd"]
    inputs = OP.make_inputs(row, torch.float32)
    place = inputs.place.clone()
    place[5] = float("nan")
    out = OP.op(place, inputs.first_row, problem=row)
    good = torch.arange(150) != 5
    assert out[5].isnan().all()
    assert_close(out[good], OP.op(*inputs, problem=row)[good], 0, "other rows")


def test_derivatives_of_the_spline_are_those_of_the_function():
    """A cubic is a spline of its own: values and slopes to rounding."""
    points = torch.arange(-2, 14, dtype=torch.float64)
    table = _spline.table(torch.stack([torch.ones(16, dtype=torch.float64), points], 1))
    place = torch.rand(8, 1, dtype=torch.float64).requires_grad_()
    out = ops.spline(place, torch.arange(8), table, 2)
    assert_close(out[:, 0].detach(), torch.ones(8, dtype=torch.float64), 0, "one")
    assert_close(out[:, 1].detach(), (place.detach()[:, 0] + torch.arange(8)), 0, "x")
    (slope,) = torch.autograd.grad(out[:, 1].sum(), place)
    assert_close(slope, torch.ones_like(slope), 1, "slope")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"place": torch.zeros(3)}, ValueError, "place: expected shape"),
        ({"place": torch.zeros(3, 1).half()}, TypeError, "place: expected float32"),
        ({"first_row": torch.zeros(3, dtype=torch.int32)}, TypeError, "first_row: expected int64"),
        ({"first_row": torch.tensor([0, 15, 0])}, RuntimeError, r"first_row\[1\] = 15 is out of"),
        ({"first_row": torch.tensor([0, -1, 0])}, RuntimeError, r"first_row\[1\] = -1 is out of"),
        ({"table": torch.zeros(1, 5, 64)}, ValueError, "table: expected that of 64"),
        ({"table": torch.zeros(1, 20, 64).double()}, TypeError, "table: expected torch.float32"),
        ({"table": torch.zeros(1, 20, 64, requires_grad=True)}, ValueError, "cannot be trained"),
        ({"columns": 65}, ValueError, "table: expected that of 65"),
    ],
)
def test_bad_arguments(changes, error, message):
    row = OP.cases["a block"]
    arguments = OP.arguments(OP.make_inputs(row, torch.float32, edges=3), row)
    with pytest.raises(error, match=message):
        ops.spline(**{**arguments, **changes})

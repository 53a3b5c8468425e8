"""Numbers: every row of the table against the reference, the reference against e3nn."""

from functools import lru_cache, partial

import pytest
import torch

from fastmlip.testing import (
    OPERATORS,
    assert_close,
    assert_same_derivatives,
    derivatives,
    make_inputs,
)

OP = OPERATORS["tensor_product_conv"]
DTYPES = (torch.float32, torch.float64)
CASES = OP.rows(*DTYPES)
ORDER = 3


@lru_cache(maxsize=1)  # rows come one after the other
def truth(name):
    """Operands that float32 holds exactly, and all derivatives of the reference in float64."""
    case = OP.cases[name]
    inputs = make_inputs(case, torch.float32)
    reference = partial(OP.reference, problem=case.problem)
    return inputs, derivatives(reference, inputs.to(torch.float64), ORDER)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_all_derivatives_up_to_third_order_match_the_reference(name, dtype):
    inputs, expected = truth(name)
    function = partial(OP.op, problem=OP.cases[name].problem)
    for got, want in zip(derivatives(function, inputs.to(dtype), ORDER), expected, strict=True):
        assert got.value.dtype == dtype
        assert_close(got.value, want.value, got.order, f"{name}: {got.name}")


@pytest.mark.parametrize("name", OP.rows())
def test_reference_matches_e3nn(name):
    case = OP.cases[name]
    inputs = make_inputs(case)
    torch.set_default_dtype(torch.float64)
    try:
        product = case.e3nn()
    finally:
        torch.set_default_dtype(torch.float32)

    def stock(x, edge_attr, edge_weight, edge_dst, edge_src):
        messages = product(x[edge_src], edge_attr, edge_weight)
        return messages.new_zeros(x.shape[0], messages.shape[1]).index_add(0, edge_dst, messages)

    assert_same_derivatives(partial(OP.reference, problem=case.problem), stock, inputs, order=1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_longer_edge_list_matches_too(name, dtype):
    case = OP.cases[name]
    inputs = make_inputs(case, dtype, nodes=11, edges=400, seed=1)
    op, reference = (partial(f, problem=case.problem) for f in (OP.op, OP.reference))
    assert_same_derivatives(op, reference, inputs, order=2)


# ---------------------------------------------------------------- the comparison can fail


def _first_triple(tables, case):
    """Where the first Clebsch-Gordan triple stands in ``problem.tables()``."""
    return len(tables) - 4 * int(tables[4])


def _flip_one_sign(tables, case):
    tables[_first_triple(tables, case) + 3] ^= -(2**63)


def _round_to_float32(tables, case):
    values = tables[_first_triple(tables, case) + 3 :: 4]
    values.copy_(values.clone().view(torch.float64).float().double().view(torch.int64))


def _swap_two_components(tables, case):
    counts = [len(path.cg) for path in case.problem.paths]
    for triples in tables[_first_triple(tables, case) :].view(-1, 4).split(counts):
        if triples[0, 0] != triples[-1, 0]:  # of one path, so that the table stays a table
            triples[[0, -1], 0] = triples[[-1, 0], 0]
            return
    raise AssertionError("no path to break")


def _drop_a_path(tables, case):
    count = len(case.problem.paths[0].cg)
    tables[_first_triple(tables, case) :].view(-1, 4)[:count, 3] = 0


FAULTS = (_flip_one_sign, _round_to_float32, _swap_two_components, _drop_a_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_wrong_coefficient_is_noticed(fault):
    """A faulty table, and the same numbers as the test above compares: it must turn red."""
    name = "shared-output"
    inputs, expected = truth(name)
    case = OP.cases[name]
    tables = case.problem.tables()
    fault(tables, case)
    function = partial(OP.op, problem=case.problem, tables=tables)
    got = derivatives(function, inputs.to(torch.float64), 1)
    with pytest.raises(AssertionError, match="of the largest entry"):
        for actual, want in zip(got, expected, strict=False):
            assert_close(actual.value, want.value, actual.order, actual.name)


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        ([1.0, float("nan")], [1.0, 2.0], r"y\[1\] = nan"),
        ([1.0, float("inf")], [1.0, 2.0], r"y\[1\] = inf"),
        ([1.0, 2.0], [1.0, float("nan")], "expected values are not finite"),
        ([1.0], [1.0, 2.0], "shape"),
        ([1e-30, 0.0], [0.0, 0.0], r"y\[0\] = 1e-30, expected 0"),
        ([1.0, 2.0 + 1e-4], [1.0, 2.0], "off by 5.0e-05 of the largest"),
    ],
)
def test_comparator_rejects(actual, expected, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(torch.tensor(actual), torch.tensor(expected), name="y")

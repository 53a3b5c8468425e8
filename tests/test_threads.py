"""Every operator and derivative: the same bits in every run and for 1 to 8 threads."""

from functools import partial

import pytest
import torch

from fastmlip.testing import OPERATORS, derivatives

DTYPES = (torch.float32, torch.float64)
CASES = [
    pytest.param(op, case, dtype, marks=() if row < 2 else pytest.mark.slow, id=f"{op}-{case}-{b}")
    for op, table in OPERATORS.items()
    for row, case in enumerate(table.cases)
    for b, dtype in zip((32, 64), DTYPES, strict=True)
]
# composed of torch's matrix products, which do not promise the same bits for any number of threads
ORDER = {"radial_conv": 1}


@pytest.mark.parametrize(("operator", "case", "dtype"), CASES)
def test_bits_do_not_depend_on_threads_or_run(operator, case, dtype):
    table = OPERATORS[operator]
    inputs = table.make_inputs(table.cases[case], dtype, **table.large)
    problem = getattr(table.cases[case], "problem", table.cases[case])
    function = partial(table.op, problem=problem)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3, 4, 5, 6, 7, 8):
            torch.set_num_threads(threads)
            results.append(derivatives(function, inputs, ORDER.get(operator, 2)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for got, first in zip(other, results[0], strict=True):
            assert torch.equal(got.value, first.value), got.name

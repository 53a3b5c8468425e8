"""The one table of cases and the one comparator: tests and benchmarks iterate the same rows.

A new operator is one file in ``cases`` and one row in ``OPERATORS``.
"""

from fastmlip.testing.cases import OPERATORS, Operator
from fastmlip.testing.cases.tensor_product_conv import NEQUIP_PRESETS, Case, Inputs, make_inputs
from fastmlip.testing.compare import (
    TOLERANCES,
    Derivative,
    assert_close,
    assert_same_derivatives,
    derivatives,
    nonlinear_chain,
    poison_empty,
    relative_error,
)

__all__ = [
    "NEQUIP_PRESETS",
    "OPERATORS",
    "TOLERANCES",
    "Case",
    "Derivative",
    "Inputs",
    "Operator",
    "assert_close",
    "assert_same_derivatives",
    "derivatives",
    "make_inputs",
    "nonlinear_chain",
    "poison_empty",
    "relative_error",
]

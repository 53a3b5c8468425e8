"""The one table of cases and the one comparator: tests and benchmarks iterate the same rows.

A new operator is one :class:`~fastmlip.testing.cases.Operator` in ``OPERATORS``.
"""

from fastmlip.testing.cases import NEQUIP_PRESETS, OPERATORS, Case, Inputs, Operator, make_inputs
from fastmlip.testing.compare import (
    TOLERANCES,
    Derivative,
    assert_close,
    assert_same_derivatives,
    derivatives,
    poison_empty,
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
    "poison_empty",
]

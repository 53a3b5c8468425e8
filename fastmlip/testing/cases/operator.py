"""What a file of cases gives for its operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch


class Operator(NamedTuple):
    """``op(*inputs, problem)`` and ``reference(*inputs, problem)`` on ``make_inputs(case)``.

    ``arguments(inputs, case)`` are the same operands as keyword arguments of the public function
    ``fastmlip.ops.NAME``; ``large`` are arguments of ``make_inputs`` that give work to 8 threads,
    ``small`` those that leave third derivatives, and Triton's interpreter, little to do.
    ``triton`` are names of rows that the interpreter runs, none where there are no such kernels.
    """

    op: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    make_inputs: Callable[..., Any]
    cases: dict[str, Any]
    arguments: Callable[[Any, Any], dict[str, Any]]
    large: dict[str, int]
    small: dict[str, int]
    triton: tuple[str, ...] = ()
    slow: frozenset[str] = frozenset()  # names of rows left to `make test-all`

    def functions(self, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """``op`` and ``reference`` of a row, as functions of its inputs alone."""
        problem = self.cases[name].problem
        return partial(self.op, problem=problem), partial(self.reference, problem=problem)

    def rows(self, *choices: Any) -> list[Any]:
        """Names of all rows for ``pytest.mark.parametrize``, the slow ones marked so.

        With ``choices`` (dtypes, ...), pairs of a name and each choice.
        """
        import pytest

        pairs: list[tuple] = [(name, c) for name in self.cases for c in choices]
        pairs = pairs or [(name,) for name in self.cases]
        return [
            pytest.param(*pair, marks=pytest.mark.slow if pair[0] in self.slow else ())
            for pair in pairs
        ]

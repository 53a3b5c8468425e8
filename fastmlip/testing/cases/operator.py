"""What a file of cases gives for its operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Operator(NamedTuple):
    """``op(*inputs, problem)`` and ``reference(*inputs, problem)`` on ``make_inputs(case)``.

    ``arguments(inputs, case)`` are the same operands as keyword arguments of the public function
    ``fastmlip.ops.NAME``; ``large`` are arguments of ``make_inputs`` that give work to 8 threads.
    """

    op: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    make_inputs: Callable[..., Any]
    cases: dict[str, Any]
    arguments: Callable[[Any, Any], dict[str, Any]]
    large: dict[str, int]

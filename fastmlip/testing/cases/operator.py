"""What a file of cases gives for its operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Operator(NamedTuple):
    """``op(*inputs, problem)`` and ``reference(*inputs, problem)`` on ``make_inputs(case)``."""

    op: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    make_inputs: Callable[..., Any]
    cases: dict[str, Any]

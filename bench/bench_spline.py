"""Tables of Allegro's scalar embedding, ``spline``, against the same formula in plain PyTorch,
float32: energies and forces, which need no second derivative."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fastmlip import ops
from fastmlip.ops.spline import reference
from fastmlip.testing import assert_close
from fastmlip.testing.cases import OPERATORS

from .rows import Derivatives

OPERATOR, EDGES = OPERATORS["spline"], 4_000
CASES = ("16 pairs of types",)


@cache
def _derivatives(name, who):
    row = OPERATOR.cases[name]
    inputs, table = OPERATOR.make_inputs(row, torch.float32, edges=EDGES), row.table(torch.float32)
    op = ops.spline if who == "fastmlip" else reference
    return Derivatives(lambda: op(*inputs, table, row.columns), [inputs.place])


@pytest.mark.parametrize("who", ["PyTorch", "fastmlip"])
@pytest.mark.parametrize("what", ["forward", "forward+backward"])
@pytest.mark.parametrize("name", CASES)
def bench_spline(compare, name, what, who):
    found = [_derivatives(name, w) for w in ("PyTorch", "fastmlip")]
    for want, got, order in zip(*(f.all() for f in found), found[0].orders(), strict=True):
        assert_close(got, want.double(), order, name, slack=3)
    timed = _derivatives(name, who).timed(what)
    compare(who, timed, case=name, what=what, size=("edges", EDGES))

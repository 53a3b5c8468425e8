"""Allegro's operator ``contraction`` against the same formula in plain PyTorch, float32."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fastmlip.testing import assert_close
from fastmlip.testing.cases import OPERATORS

from .rows import WHATS, Derivatives

OPERATOR, EDGES = OPERATORS["contraction"], 1_500
CASES = ("l_max 2, first layer",)


@cache
def _derivatives(name, who):
    op, reference = OPERATOR.functions(name)
    inputs = OPERATOR.make_inputs(OPERATOR.cases[name], torch.float32, edges=EDGES)
    function = op if who == "fastmlip" else reference
    floats = [x for x in inputs if x.is_floating_point()]
    return Derivatives(lambda: function(*inputs), floats)


@pytest.mark.parametrize("who", ["PyTorch", "fastmlip"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", CASES)
def bench_contraction(compare, name, what, who):
    found = [_derivatives(name, w) for w in ("PyTorch", "fastmlip")]
    for want, got, order in zip(*(f.all() for f in found), found[0].orders(), strict=True):
        assert_close(got, want.double(), order, name)
    timed = _derivatives(name, who).timed(what)
    compare(who, timed, case=name, what=what, size=("edges", EDGES))

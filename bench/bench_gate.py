"""The gated nonlinearity of NequIP's hidden layers against e3nn's ``Gate``, float32."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from e3nn.nn import Gate as Stock

from fastmlip.nn import Gate
from fastmlip.testing import assert_close

from .rows import WHATS, Derivatives

SILU = torch.nn.functional.silu
CASES = {
    "nequip-S": ("128x0e", [SILU], "64x0e", [SILU], "64x1o"),
    "nequip-M": ("128x0e", [SILU], "64x0e+32x0e", [SILU, SILU], "64x1o+32x2e"),
}
SIZES = (100, 1_000, 10_000)


@cache
def _modules(name):
    return {"e3nn": Stock(*CASES[name]), "fastmlip": Gate(*CASES[name])}


def _derivatives(module, nodes):
    x = torch.randn(nodes, module.irreps_in.dim, generator=torch.Generator().manual_seed(0))
    return Derivatives(lambda: module(x), [x], [])


@pytest.mark.parametrize("who", ["e3nn", "fastmlip"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("nodes", SIZES)
@pytest.mark.parametrize("name", CASES)
def bench_gate(compare, name, nodes, what, who):
    found = [_derivatives(module, nodes) for module in _modules(name).values()]
    for want, got, order in zip(*(f.all() for f in found), found[0].orders(), strict=True):
        assert_close(got, want.double(), order, name)
    timed = _derivatives(_modules(name)[who], nodes).timed(what)
    compare(who, timed, case=name, what=what, size=("nodes", nodes))

"""Linear maps of NequIP's hidden layers against e3nn's ``Linear`` and, folded by type, its
``FullyConnectedTensorProduct``; frozen weights, float32."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from e3nn import o3

from fastmlip.integrations.linear import FoldedLinear, TypedLinear
from fastmlip.testing import assert_close

from .rows import Derivatives

M_IN, M_OUT = "128x0e+64x1o+32x2e", "224x0e+64x1o+32x2e"
CASES = ("nequip-M, linear_2", "nequip-M, self-connection")
SIZES = (100, 1_000, 10_000)
TYPES = 3


@cache
def _functions(name):
    """Of rows and their types."""
    if name.endswith("linear_2"):
        stock = o3.Linear("224x0e+288x1o+256x2e", M_OUT).requires_grad_(False)
        fast = FoldedLinear(stock)
        return {"e3nn": lambda x, _: stock(x), "fastmlip": lambda x, _: fast(x, stock)}
    sc = o3.FullyConnectedTensorProduct(M_IN, "32x0e", M_OUT).requires_grad_(False)
    v, typed = torch.randn(TYPES, 32, generator=torch.Generator().manual_seed(0)), TypedLinear(sc)
    return {
        "e3nn": lambda x, types: sc(x, v[types]),
        "fastmlip": lambda x, types: typed(x, sc, v, types),
    }


def _derivatives(name, who, nodes):
    irreps = M_IN if name.endswith("connection") else "224x0e+288x1o+256x2e"
    random = torch.Generator().manual_seed(0)
    x = torch.randn(nodes, o3.Irreps(irreps).dim, generator=random)
    types = torch.randint(TYPES, (nodes,), generator=random)
    return Derivatives(lambda: _functions(name)[who](x, types), [x], [types])


@pytest.mark.parametrize("who", ["e3nn", "fastmlip"])
@pytest.mark.parametrize("what", ["forward", "forward+backward"])
@pytest.mark.parametrize("nodes", SIZES)
@pytest.mark.parametrize("name", CASES)
def bench_irreps_linear(compare, name, nodes, what, who):
    rows = {one: _derivatives(name, one, nodes) for one in ("e3nn", "fastmlip")}
    for got, want in zip(rows["fastmlip"].backward(), rows["e3nn"].backward(), strict=True):
        assert_close(got, want.double(), 2, name)
    compare(who, rows[who].timed(what), case=name, what=what, size=("nodes", nodes))

"""Layers of NequIP M's radial network, made once for each pair, against torch's product of the rows
of all edges. 5,400 edges, all in pairs, float32."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastmlip import ops
from fastmlip.testing import OPERATORS, assert_close

from .rows import WHATS, Derivatives

EDGES = 5400
OPERATOR = OPERATORS["pair_linear"]
WHO = {"torch": lambda x, weight, edge_pair: x @ weight, "fastmlip": ops.pair_linear}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", ["nequip-M, last layer", "first layer"])
def bench_pair_linear(compare, name, what, who):
    x, weight, _ = OPERATOR.make_inputs(OPERATOR.cases[name], torch.float32, EDGES)
    edge_pair = torch.arange(EDGES) // 2 * 2
    x = x[edge_pair]
    rows = {
        one: Derivatives(partial(function, x, weight, edge_pair), [x, weight], [edge_pair])
        for one, function in WHO.items()
    }
    out, dx, dweight = rows["fastmlip"].backward()
    want, by_edge, by_weight = rows["torch"].backward()
    assert_close(out, want.double(), 2, name)
    assert_close(dx[::2], by_edge[::2].double() + by_edge[1::2].double(), 2, name)
    assert_close(dweight, by_weight.double(), 2, name)
    timed = rows[who].timed(what)
    compare(who, timed, case=name, what=what, size=("edges", EDGES))

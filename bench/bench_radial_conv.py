"""radial_conv against edge weights that are made first, all of them, for tensor_product_conv.

The hidden layer of NequIP M, 108 nodes with 50 neighbours each, float32; half of the edges stand
for another one too, as in a neighbour list with both directions of every pair.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastmlip import ops
from fastmlip.ops.radial_conv import edge_weights
from fastmlip.testing import OPERATORS, assert_close

from .rows import Derivatives

NODES, DEGREE = 108, 50
OPERATOR = OPERATORS["radial_conv"]
CASES = ("nequip-M-hidden, network", "nequip-M-hidden, pairs", "nequip-M-hidden, spline")
WHO = {"weights made first": "plain", "fastmlip": "fused"}


def _function(kind, problem, edge_dst, edge_src, chosen, hidden):
    """Of x, edge_attr and radial; the weights of a frozen model have no gradient."""
    named = {"edge_pair": None, "first_row": None} | problem.named(chosen)
    named["hidden"] = hidden if problem.depth else None
    tables, order = problem.product.tables(), ops.edge_order(edge_dst, edge_src, NODES)

    def fused(x, edge_attr, radial, weight):
        return ops.radial_conv(
            x, edge_attr, radial, weight, edge_dst, edge_src, problem.product, tables,
            order=order, **named,
        )  # fmt: skip

    def plain(x, edge_attr, radial, weight):
        edge_weight = edge_weights(
            radial, weight, **named, weight_numel=problem.product.weight_numel
        )
        return ops.tensor_product_conv(
            x, edge_attr, edge_weight, edge_dst, edge_src, problem.product, tables
        )

    return fused if kind == "fused" else plain


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("what", ["forward", "forward+backward"])
@pytest.mark.parametrize("name", CASES)
def bench_radial_conv(compare, name, what, who):
    problem = OPERATOR.cases[name].problem
    inputs = OPERATOR.make_inputs(
        OPERATOR.cases[name], torch.float32, NODES, NODES * DEGREE, sorted=True
    )
    edges = torch.arange(NODES * DEGREE)
    chosen = edges // 2 * 2 if problem.kind == "edge_pair" else inputs.chosen
    operands, weight = list(inputs[:3]), inputs.weight
    rows = {}
    for kind in WHO.values():
        function = _function(kind, problem, inputs.edge_dst, inputs.edge_src, chosen, inputs.hidden)
        call = partial(function, *operands, weight)
        rows[kind] = Derivatives(call, operands, [weight])
    for got, want in zip(rows["fused"].backward(), rows["plain"].backward(), strict=True):
        assert_close(got, want.double(), 2, name)
    timed = rows[WHO[who]].timed(what)
    compare(who, timed, case=name, what=what, size=("edges", NODES * DEGREE),
            note=f"{NODES} nodes")  # fmt: skip

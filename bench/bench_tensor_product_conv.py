"""The operator against e3nn's ``TensorProduct`` and ``index_add``, on hidden layers of NequIP.

108 nodes with 50 edges each, float32, random senders, edges sorted by receiver as neighbour lists
give them.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fastmlip.nn import TensorProductConv
from fastmlip.testing import OPERATORS, assert_same_derivatives, make_inputs

NODES, DEGREE = 108, 50
_, reference, _, CASES = OPERATORS["tensor_product_conv"]
ORDERS = {"forward": 0, "forward+backward": 1, "forward+backward+double backward": 2}


def _peer(case):
    tp = case.e3nn()

    def conv(x, edge_attr, edge_weight, edge_dst, edge_src):
        out = x.new_zeros(x.shape[0], tp.irreps_out.dim)
        return out.index_add(0, edge_dst, tp(x[edge_src], edge_attr, edge_weight))

    return conv


def _inputs(case, nodes, dtype=torch.float32):
    inputs = make_inputs(case, dtype, nodes=nodes, edges=nodes * DEGREE, sorted=True)
    return inputs._replace(edge_dst=torch.arange(nodes).repeat_interleave(DEGREE))


@cache
def _functions(name):
    """Both implementations, after they agreed on every derivative of a small graph."""
    case = CASES[name]
    torch.set_default_dtype(torch.float32)  # e3nn's tables; NequIP sets float64
    functions = {"fastmlip": TensorProductConv(*case.arguments()), "peer": _peer(case)}
    small = _inputs(case, 3)
    assert_same_derivatives(
        functions["fastmlip"], lambda *inputs: reference(*inputs, case.problem), small, order=2
    )
    return functions


@pytest.mark.parametrize("who", ["peer", "fastmlip"])
@pytest.mark.parametrize("what", ORDERS)
@pytest.mark.parametrize("name", ["nequip-S-hidden", "nequip-M-hidden", "nequip-L-hidden"])
def bench_conv(compare, name, what, who):
    case, function = CASES[name], _functions(name)[who]
    inputs = _inputs(case, NODES)
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in inputs]
    operands = leaves[:3]
    grad = torch.randn(NODES, case.problem.dim_out).requires_grad_()
    directions = [torch.randn_like(t) for t in operands]

    def run():
        with torch.set_grad_enabled(ORDERS[what] > 0):
            out = function(*leaves)
        if ORDERS[what] == 0:
            return
        first = torch.autograd.grad(out, operands, grad, create_graph=ORDERS[what] == 2)
        if ORDERS[what] == 2:
            torch.autograd.grad(first, [grad, *operands], directions)

    edges = NODES * DEGREE
    note = f"{case.problem.flops_per_edge * edges / 1e9:.2f} GFLOP forward, {edges} edges"
    compare(who, run, f"{name} {what}", rounds=4 if who == "peer" else 15, note=note)

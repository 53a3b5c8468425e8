"""The operator against e3nn's ``TensorProduct`` and ``index_add``, cuequivariance-torch, and on a
GPU OpenEquivariance, on the irreps of real models.

50 edges a node, float32, random senders, edges sorted by receiver as neighbour lists give them. 108
nodes for every model, and 8 to 512 nodes for the hidden layer of NequIP M.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from fastmlip.nn import TensorProductConv
from fastmlip.testing import OPERATORS, assert_close, make_inputs

from .peers import convolutions
from .rows import WHATS, Derivatives, total

NODES, DEGREE = 108, 50
SCALING = {"nequip-M-hidden": (8, 32, 512)}
OPERATOR = OPERATORS["tensor_product_conv"]
reference, CASES = OPERATOR.reference, OPERATOR.cases
MODELS = [name for name in CASES if name.startswith(("nequip", "sevennet", "mace", "allegro"))]
SIZES = [(name, nodes) for name in MODELS for nodes in sorted([NODES, *SCALING.get(name, ())])]


def _inputs(case, nodes, device="cpu"):
    inputs = make_inputs(case, torch.float32, nodes, nodes * DEGREE, sorted=True)
    dst = torch.arange(nodes).repeat_interleave(DEGREE)
    return [t.to(device) for t in inputs._replace(edge_dst=dst)]


def _derivatives(function, inputs):
    operands, indices = inputs[:3], inputs[3:]
    return Derivatives(lambda: function(*inputs), operands, indices)


@lru_cache(maxsize=8)  # rows of a case come together
def _function(name, who, device):
    """One implementation, after it agreed with the reference on every derivative."""
    case = CASES[name]
    if who == "fastmlip":
        function = TensorProductConv(*case.arguments()).to(device)
    else:
        function = convolutions(device)[who](case, device)
    got = _derivatives(function, _inputs(case, 3, device))
    wide = [t.double() if t.is_floating_point() else t for t in _inputs(case, 3)]
    want = _derivatives(lambda *inputs: reference(*inputs, case.problem), wide)
    for a, b, order in zip(got.all(), want.all(), got.orders(), strict=True):
        assert_close(a, b, order, f"{who} on {name}")
    return function


@pytest.mark.parametrize("who", [*convolutions("cuda"), "fastmlip"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize(("name", "nodes"), SIZES)
def bench_conv(compare, device, name, nodes, what, who):
    if who not in ("fastmlip", *convolutions(device)):
        pytest.skip(f"{who} has nothing for {device}")
    derivatives = _derivatives(_function(name, who, device), _inputs(CASES[name], nodes, device))
    # one unit: the product with the matrix of a path, [d1] to [d3], of every channel. Backward has
    # it for x, edge_attr and edge_weight; double backward for these three and grad, in every term
    # of the page's L where the result is not the tangent's own slot, shared where the matrix is
    unit = CASES[name].problem.flops_per_edge * nodes * DEGREE
    flops = total({"forward": unit, "backward": 3 * unit, "double backward": 7 * unit}, what)
    compare(
        who, derivatives.timed(what), case=name, what=what, size=("edges", nodes * DEGREE),
        flops=flops, moved=derivatives.moved(what), note=f"{nodes} nodes",
    )  # fmt: skip

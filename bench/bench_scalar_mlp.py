"""MLPs of an Allegro model, l_max 2 and 64 channels, against torch's products and SiLU one after
the other, with `cat` in front. 4,644 edges, float32; weights are frozen, or trained."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastmlip import ops
from fastmlip.ops.scalar_mlp import reference
from fastmlip.testing import OPERATORS, assert_close

from .rows import WHATS, Derivatives, total

EDGES = 4644
OPERATOR = OPERATORS["scalar_mlp"]
CASES = [name for name in OPERATOR.cases if name.startswith("allegro")]
WHO = {"torch": reference, "fastmlip": ops.scalar_mlp}


def _derivatives(who, inputs, case, weights):
    named = OPERATOR.arguments(inputs, case)
    operands = [named["x"], *([named["x2"]] if case.columns2 else [])]
    operands += [named["weights"]] if weights == "trained" else []
    return Derivatives(partial(WHO[who], **named), operands)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("weights", ["frozen", "trained"])
@pytest.mark.parametrize("name", CASES)
def bench_scalar_mlp(compare, name, weights, what, who):
    case = OPERATOR.cases[name]
    inputs = OPERATOR.make_inputs(case, torch.float32, EDGES)
    rows = {one: _derivatives(one, inputs, case, weights) for one in WHO}
    got, want = (rows[one].all() for one in ("fastmlip", "torch"))
    for actual, truth, order in zip(got, want, rows["torch"].orders(), strict=True):
        assert_close(actual, truth.double(), order, name, 2)
    products = 2 * EDGES * inputs.weights.numel()
    passes = {"forward": 1, "backward": 1 + (weights == "trained")}
    flops = None if "double" in what else total({k: n * products for k, n in passes.items()}, what)
    timed = rows[who].timed(what)
    compare(who, timed, case=f"{name}, {weights}", what=what, size=("edges", EDGES), flops=flops)

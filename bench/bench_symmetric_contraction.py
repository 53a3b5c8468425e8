"""Polynomials of MACE's products, 128 channels and 3 types, against MACE's own form: einsums of
dense couplings, in the order that ``opt_einsum`` finds. Weights are frozen, or trained: then the
coefficients are made of them in each call. float32."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fastmlip import ops
from fastmlip.testing import assert_close
from fastmlip.testing.couplings import couplings, polynomial, symmetric

from .rows import WHATS, Derivatives

L_MAX, DEGREES, CHANNELS, TYPES = 3, (1, 2, 3), 128, 3
CASES = {"mace small": 0, "mace medium": 1, "mace large": 2}  # outputs up to this l


class Layer:
    """Weights ``[TYPES, ways, CHANNELS]`` of each output's l and degree, and both functions."""

    def __init__(self, l_out):
        random = torch.Generator().manual_seed(0)
        self.problem = polynomial(L_MAX, l_out, DEGREES[-1])
        self.tables = self.problem.tables()
        self.blocks = [(l3, degree) for l3 in range(l_out + 1) for degree in DEGREES]
        self.couplings = [couplings(L_MAX, *block).float() for block in self.blocks]
        self.weights = [
            torch.randn(TYPES, u.shape[-1], CHANNELS, generator=random) / u.shape[-1]
            for u in self.couplings
        ]
        found = [symmetric(L_MAX, *block) for block in self.blocks]
        self.sums = [torch.stack(list(terms.values())).float() for terms in found]
        terms = [
            (l3**2 + m, monomial)
            for (l3, _), block in zip(self.blocks, found, strict=True)
            for m, monomial in block
        ]
        self.order = torch.tensor(sorted(range(len(terms)), key=terms.__getitem__))

    def coefficients(self):
        parts = [s @ w for s, w in zip(self.sums, self.weights, strict=True)]
        return torch.cat(parts, 1).index_select(1, self.order)

    def mace(self, x, types):
        """``x [N, inputs, U]``, as MACE holds it from the highest degree down."""
        x, one_hot = x.transpose(1, 2), torch.nn.functional.one_hot(types, TYPES).float()
        of_block = dict(
            zip(self.blocks, zip(self.couplings, self.weights, strict=True), strict=True)
        )
        outputs = []
        for l3 in sorted({l3 for l3, _ in self.blocks}):
            u, w = of_block[l3, 3]
            out = torch.einsum("mpqik,ekc,bci,be->bcmpq", u, w, x, one_hot)
            for degree, letters in ((2, "mp"), (1, "m")):
                u, w = of_block[l3, degree]
                c = torch.einsum(f"{letters}ik,ekc,be->bc{letters}i", u, w, one_hot)
                out = torch.einsum(f"bc{letters}i,bci->bc{letters}", c + out, x)
            outputs.append(out)
        return torch.cat(outputs, -1).transpose(1, 2)


@cache
def _layer(name):
    return Layer(CASES[name])


def _derivatives(name, who, nodes, weights):
    layer, random = _layer(name), torch.Generator().manual_seed(1)
    x = torch.randn(nodes, layer.problem.inputs, CHANNELS, generator=random)
    types = torch.randint(TYPES, (nodes,), generator=random)
    trained = weights == "trained"
    for w in layer.weights:
        w.requires_grad_(trained)
    kept = None if trained else layer.coefficients()

    def fastmlip():
        c = layer.coefficients() if trained else kept
        return ops.symmetric_contraction(x, c, types, layer.problem, layer.tables)

    function = fastmlip if who == "fastmlip" else lambda: layer.mace(x, types)
    return Derivatives(function, [x, *(layer.weights if trained else ())], [types])


@pytest.mark.parametrize("who", ["MACE's einsums", "fastmlip"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("weights", ["frozen", "trained"])
@pytest.mark.parametrize("nodes", [64, 500])
@pytest.mark.parametrize("name", CASES)
def bench_symmetric_contraction(compare, name, nodes, weights, what, who):
    rows = {one: _derivatives(name, one, nodes, weights) for one in ("MACE's einsums", "fastmlip")}
    got, want = (rows[one].all() for one in ("fastmlip", "MACE's einsums"))
    for actual, truth, order in zip(got, want, rows["fastmlip"].orders(), strict=True):
        assert_close(actual, truth.double(), order, name, 3)
    timed = rows[who].timed(what)
    compare(who, timed, case=f"{name}, {weights}", what=what, size=("nodes", nodes))

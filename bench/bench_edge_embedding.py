"""Edge embedding against NequIP's own chain of modules, at the degrees of its presets.

Both take edge vectors in float64 and give a float32 model's fields: lengths, harmonics, Bessel
functions with their cutoff and factor. 5,400 edges are 108 atoms with 50 neighbours.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import fastmlip
from fastmlip.testing import assert_close

R_MAX = 5.0
PRESETS = {"S": 1, "M": 2, "L": 3}
ORDERS = {"forward": 0, "forward+backward": 1, "forward+backward+double backward": 2}


def _chain(l_max):
    """NequIP's modules as its model builder puts them together."""
    from nequip.nn import ApplyFactor, SequentialGraphNetwork
    from nequip.nn.embedding import (
        BesselEdgeLengthEncoding,
        EdgeLengthNormalizer,
        PolynomialCutoff,
        SphericalHarmonicEdgeAttrs,
    )

    harmonics = SphericalHarmonicEdgeAttrs(l_max)
    norm = EdgeLengthNormalizer(R_MAX, ["H"], irreps_in=harmonics.irreps_out)
    bessel = BesselEdgeLengthEncoding(PolynomialCutoff(6), irreps_in=norm.irreps_out)
    factor = ApplyFactor("edge_embedding", 2 * math.pi / R_MAX**2, irreps_in=bessel.irreps_out)
    for module in (harmonics, bessel):
        module._output_dtype = torch.float32
    return SequentialGraphNetwork(
        {"spharm": harmonics, "edge_norm": norm, "bessel_encode": bessel, "factor": factor}
    )


def _vectors(edges):
    random = torch.Generator().manual_seed(0)
    vec = torch.randn((edges, 3), generator=random, dtype=torch.float64)
    lengths = torch.empty((edges, 1), dtype=torch.float64).uniform_(0.8, R_MAX, generator=random)
    return (vec / vec.norm(dim=1, keepdim=True) * lengths).requires_grad_()


def _run(chain, vec, order, grads):
    with torch.set_grad_enabled(order > 0):
        data = chain({"edge_vectors": vec, "edge_index": torch.zeros(2, len(vec)).long()})
        out = data["edge_attrs"], data["edge_embedding"]
    if order == 0:
        return out
    first = torch.autograd.grad(out, vec, grads, create_graph=order == 2)
    if order == 1:
        return *out, *first
    return *out, *first, *torch.autograd.grad(first, [vec, *grads], torch.ones_like(vec))


def _grads(edges, l_max):
    random = torch.Generator().manual_seed(1)
    columns = ((l_max + 1) ** 2, 8)
    return [torch.randn((edges, n), generator=random).requires_grad_() for n in columns]


@cache
def _functions(l_max):
    """Both chains, after they agreed on all derivatives."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as NequIP sets it
    try:
        chains = {
            "peer": _chain(l_max), "fastmlip": fastmlip.accelerate(torch.nn.Module.train(
                torch.nn.Sequential(_chain(l_max))
            )),
        }  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    found = [_run(chain, _vectors(50), 2, _grads(50, l_max)) for chain in chains.values()]
    for want, got in zip(*found, strict=True):
        assert_close(got.float(), want.float(), 2)
    return chains


@pytest.mark.parametrize("who", ["peer", "fastmlip"])
@pytest.mark.parametrize("what", ORDERS)
@pytest.mark.parametrize("edges", [200, 5400, 50000])
@pytest.mark.parametrize("preset", PRESETS)
def bench_edge_embedding(compare, preset, edges, what, who):
    l_max = PRESETS[preset]
    chain, vec, grads = _functions(l_max)[who], _vectors(edges), _grads(edges, l_max)
    compare(
        who,
        lambda: _run(chain, vec, ORDERS[what], grads),
        f"edge embedding {preset} {edges} {what}",
        rounds=15,
    )

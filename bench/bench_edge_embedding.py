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

from .rows import WHATS, Derivatives

R_MAX = 5.0
PRESETS = {"S": 1, "M": 2, "L": 3}


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
    return vec / vec.norm(dim=1, keepdim=True) * lengths


def _derivatives(chain, edges, device="cpu"):
    vec = _vectors(edges).to(device)
    index = torch.zeros(2, edges, dtype=torch.int64, device=device)

    def run():
        data = chain({"edge_vectors": vec, "edge_index": index})
        return data["edge_attrs"], data["edge_embedding"]

    return Derivatives(run, [vec])


@cache
def _functions(l_max, device):
    """Both chains, after they agreed on all derivatives."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as NequIP sets it
    try:
        stock = torch.nn.Sequential(_chain(l_max)).train()
        fast = fastmlip.accelerate(torch.nn.Sequential(_chain(l_max)).train())
    finally:
        torch.set_default_dtype(before)
    chains = {"NequIP": stock.to(device), "fastmlip": fast.to(device)}
    found = [_derivatives(chain, 50, device).all() for chain in chains.values()]
    for want, got in zip(*found, strict=True):
        assert_close(got.float(), want.float(), 2)
    return chains


@pytest.mark.parametrize("who", ["NequIP", "fastmlip"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("edges", [200, 5400, 50000])
@pytest.mark.parametrize("preset", PRESETS)
def bench_edge_embedding(compare, device, preset, edges, what, who):
    derivatives = _derivatives(_functions(PRESETS[preset], device)[who], edges, device)
    compare(
        who, derivatives.timed(what), case=f"NequIP {preset}", what=what, size=("edges", edges),
        moved=derivatives.moved(what), rounds=30,
    )  # fmt: skip

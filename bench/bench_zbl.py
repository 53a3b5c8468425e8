"""The ZBL module against NequIP's, on the same fields, in float64 as both run in a model.

50 edges a node, sorted by receiver as neighbour lists give them; lengths of 0.6 A to the cutoff.
NequIP's derivatives go through the normed length as well, as they do in a model.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fastmlip.nn import ZBL
from fastmlip.testing import assert_close

pair_potential = pytest.importorskip("nequip.nn.pair_potential")

DEGREE, R_MAX = 50, 5.0
KWARGS = {
    "type_names": ["H", "C", "O"], "chemical_species": ["H", "C", "O"], "units": "metal",
    "irreps_in": {"normed_edge_lengths": "0e"},
}  # fmt: skip
ORDERS = {"forward": 0, "forward+backward": 1, "forward+backward+double backward": 2}


def _fields(edges):
    random = torch.Generator().manual_seed(0)
    nodes = edges // DEGREE
    dst = torch.arange(nodes).repeat_interleave(DEGREE)
    src = torch.randint(nodes, (edges,), generator=random)
    return {
        "edge_index": torch.stack([dst, src]),
        "atom_types": torch.randint(3, (nodes,), generator=random),
        "atomic_energy": torch.zeros(nodes, 1, dtype=torch.float64),
        "pos": torch.zeros(nodes, 3, dtype=torch.float64),
        "edge_vectors": torch.zeros(edges, 3, dtype=torch.float64),
        "edge_lengths": 0.6 + (R_MAX - 0.6) * torch.rand(
            edges, 1, generator=random, dtype=torch.float64
        ),
    }  # fmt: skip


def _runner(module, edges, order):
    fields = _fields(edges)
    length = fields["edge_lengths"].requires_grad_(order > 0)
    random = torch.Generator().manual_seed(1)
    draw = {"generator": random, "dtype": torch.float64}
    grad, direction = torch.rand(edges // DEGREE, 1, **draw), torch.rand(edges, 1, **draw)
    normed = fields["edge_lengths"].detach() / R_MAX

    def run():
        data = dict(fields)
        data["normed_edge_lengths"] = length / R_MAX if order else normed
        energy = module(data)["atomic_energy"]
        if order == 0:
            return (energy,)
        (slope,) = torch.autograd.grad(energy, length, grad, create_graph=order == 2)
        if order == 1:
            return energy, slope
        return energy, slope, torch.autograd.grad(slope, length, direction)[0]

    return run


@cache
def _modules():
    """Both modules, after they agreed on every derivative of a small graph."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    modules = {"peer": pair_potential.ZBL(**KWARGS), "fastmlip": ZBL(**KWARGS)}
    torch.set_default_dtype(before)
    results = [_runner(modules[who], 500, 2)() for who in ("fastmlip", "peer")]
    for order, (got, want) in enumerate(zip(*results, strict=True)):
        assert_close(got, want, order)
    return modules


@pytest.mark.parametrize("who", ["peer", "fastmlip"])
@pytest.mark.parametrize("what", ORDERS)
@pytest.mark.parametrize("edges", [1_000, 10_000, 100_000, 1_000_000])
def bench_zbl(compare, edges, what, who):
    run = _runner(_modules()[who], edges, ORDERS[what])
    rounds = {1_000: 200, 10_000: 100, 100_000: 30}.get(edges, 7)
    compare(who, run, f"zbl {edges} edges {what}", rounds=rounds)

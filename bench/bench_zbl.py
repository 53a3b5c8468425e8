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

from .rows import WHATS, Derivatives

pair_potential = pytest.importorskip("nequip.nn.pair_potential")

DEGREE, R_MAX = 50, 5.0
KWARGS = {
    "type_names": ["H", "C", "O"], "chemical_species": ["H", "C", "O"], "units": "metal",
    "irreps_in": {"normed_edge_lengths": "0e"},
}  # fmt: skip


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


def _derivatives(module, edges, device="cpu"):
    fields = {name: field.to(device) for name, field in _fields(edges).items()}
    length = fields["edge_lengths"]

    def run():
        return module({**fields, "normed_edge_lengths": length / R_MAX})["atomic_energy"]

    return Derivatives(run, [length], [fields["edge_index"], fields["atom_types"]])


@cache
def _modules(device):
    """Both modules, after they agreed on every derivative of a small graph."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    modules = {"NequIP": pair_potential.ZBL(**KWARGS), "fastmlip": ZBL(**KWARGS)}
    torch.set_default_dtype(before)
    modules = {who: module.to(device) for who, module in modules.items()}
    found = [_derivatives(module, 500, device) for module in modules.values()]
    for want, got, order in zip(*(f.all() for f in found), found[0].orders(), strict=True):
        assert_close(got, want, order)
    return modules


@pytest.mark.parametrize("who", ["NequIP", "fastmlip"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("edges", [1_000, 10_000, 100_000, 1_000_000])
def bench_zbl(compare, device, edges, what, who):
    derivatives = _derivatives(_modules(device)[who], edges, device)
    compare(
        who, derivatives.timed(what), case="three types", what=what, size=("edges", edges),
        moved=derivatives.moved(what), rounds=50,
    )  # fmt: skip

"""Vectors of edges against what NequIP does: two ``index_select`` and a difference, whose gradient
is two ``index_add``. float64, 50 edges a node, sorted by receiver; the order of edges is there, as
for all layers of a model but the first."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastmlip import ops
from fastmlip.ops.edge_vectors import reference
from fastmlip.testing import assert_close

from .rows import WHATS, Derivatives

DEGREE = 50


def _derivatives(who, edges, device):
    random = torch.Generator().manual_seed(0)
    nodes = edges // DEGREE
    positions = torch.randn(nodes, 3, generator=random, dtype=torch.float64).to(device)
    dst = torch.arange(nodes).repeat_interleave(DEGREE).to(device)
    src = torch.randint(nodes, (edges,), generator=random).to(device)
    run = partial(reference, positions, dst, src)
    if who == "fastmlip":
        run = partial(ops.edge_vectors, positions, dst, src, ops.edge_order(dst, src, nodes))
    return Derivatives(run, [positions], [dst, src])


@pytest.mark.parametrize("who", ["NequIP", "fastmlip"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("edges", [5_400, 100_000, 1_000_000])
def bench_edge_vectors(compare, device, edges, what, who):
    rows = {one: _derivatives(one, edges, device) for one in ("NequIP", "fastmlip")}
    found = [row.all() for row in rows.values()]
    for want, got, order in zip(*found, rows["NequIP"].orders(), strict=True):
        assert_close(got, want, order)
    timed = rows[who].timed(what)
    compare(who, timed, case="index_select", what=what, size=("edges", edges))

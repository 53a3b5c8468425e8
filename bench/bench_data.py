"""Dataset statistics against NequIP's manager: 2,000 frames of 64 atoms with 20 types.

Both read the same batches, which are made beforehand, and compute NequIP's five common statistics;
fastmlip computes its five further ones as well. 40 neighbours an atom, sorted by centre as
neighbour lists give them.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from nequip.data import CommonDataStatisticsManager
from nequip.utils.global_state import set_global_state

from fastmlip.data import CommonDatasetStatistics

FRAMES, ATOMS, TYPES, NEIGHBORS = 2000, 64, 20, 40
NAMES = [f"T{i}" for i in range(TYPES)]
MANAGERS = {"NequIP": CommonDataStatisticsManager, "fastmlip": CommonDatasetStatistics}


@cache
def _batches(size):
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(0, FRAMES, size):
        atoms = size * ATOMS
        centers = torch.arange(atoms).repeat_interleave(NEIGHBORS)
        neighbors = torch.randint(ATOMS, (len(centers),), generator=generator)
        forces = torch.randn(atoms, 3, generator=generator, dtype=torch.float64)
        energies = torch.randn(size, 1, generator=generator, dtype=torch.float64)
        batches.append(
            {
                "pos": torch.zeros(atoms, 3, dtype=torch.float64),
                "atom_types": torch.randint(TYPES, (atoms,), generator=generator),
                "edge_index": torch.stack([centers, centers // ATOMS * ATOMS + neighbors]),
                "num_atoms": torch.full((size,), ATOMS),
                "batch": torch.arange(size).repeat_interleave(ATOMS),
                "total_energy": energies - 1e5 * ATOMS,
                "forces": forces,
            }
        )
    return batches


def _run(who, size):
    return MANAGERS[who](type_names=NAMES).get_statistics(_batches(size))


@cache
def _agree(size):
    set_global_state(allow_tf32=False)
    torch.set_default_dtype(torch.float64)  # NequIP sets it in its first call only
    stock, ours = _run("NequIP", size), _run("fastmlip", size)
    for name in MANAGERS["NequIP"](type_names=NAMES).names:
        value, other = stock[name], ours[name]
        values, others = (x.values() if isinstance(x, dict) else [x] for x in (value, other))
        for a, b in zip(values, others, strict=True):
            assert abs(a - b) <= 1e-11 * abs(a), name


@pytest.mark.parametrize("who", ["NequIP", "fastmlip"])
@pytest.mark.parametrize("size", [10, 100])
def bench_dataset_statistics(compare, size, who):
    _agree(size)
    compare(
        who, lambda: _run(who, size), case=f"batches of {size}", what="five statistics",
        size=("frames", FRAMES), rounds=3, note=f"{ATOMS} atoms, {TYPES} types",
    )  # fmt: skip

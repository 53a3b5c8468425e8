"""Frames with known statistics, which the tests of statistics share."""

import math

import numpy as np
import torch

NAMES = ["H", "C", "O", "Cu"]
ATOMIC = np.array([-13.6, -1029.0, -2041.0, -45000.0])


def make_frames(count=30, seed=0, mean=1e5, types=4, atoms=(1, 12)):
    """Frames as dicts of numpy arrays; energies near ``mean`` eV an atom."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        n = int(rng.integers(*atoms))
        kinds = rng.integers(0, types, n)
        edges = int(rng.integers(0, 4 * n))
        frames.append(
            {
                "types": kinds,
                "energy": mean * n + ATOMIC[kinds].sum() + 0.3 * rng.normal(),
                "forces": rng.normal(size=(n, 3)) * (1.0 + kinds[:, None]),
                "edges": rng.integers(0, n, (2, edges)),
            }
        )
    return frames


def to_batches(frames, size):
    """NequIP's batches of them."""
    batches = []
    for start in range(0, len(frames), size):
        part = frames[start : start + size]
        counts = [len(frame["types"]) for frame in part]
        first = np.concatenate([[0], np.cumsum(counts)])
        batches.append(
            {
                "pos": torch.zeros(sum(counts), 3),
                "atom_types": torch.tensor(np.concatenate([f["types"] for f in part])),
                "num_atoms": torch.tensor(counts),
                "batch": torch.repeat_interleave(torch.arange(len(part)), torch.tensor(counts)),
                "total_energy": torch.tensor([[f["energy"]] for f in part], dtype=torch.float64),
                "forces": torch.tensor(np.concatenate([f["forces"] for f in part])),
                "edge_index": torch.tensor(
                    np.concatenate([f["edges"] + k for f, k in zip(part, first, strict=False)], 1)
                ),
            }
        )
    return batches


def expected(frames, types=4):
    """The definitions, in extended precision where numpy has it."""
    wide = np.longdouble
    energy = np.array([f["energy"] for f in frames], wide)
    n = np.array([len(f["types"]) for f in frames], wide)
    kinds = np.concatenate([f["types"] for f in frames])
    forces = np.concatenate([f["forces"] for f in frames]).astype(wide)
    neighbors = np.concatenate(
        [np.bincount(f["edges"][0], minlength=len(f["types"])) for f in frames]
    ).astype(wide)

    def by_type(function):
        return dict(zip(NAMES, (float(function(kinds == t)) for t in range(types)), strict=False))

    return {
        "num_neighbors_mean": float(neighbors.mean()),
        "avg_num_neighbors": float(neighbors.mean()),
        "per_type_num_neighbors_mean": by_type(lambda mask: neighbors[mask].mean()),
        "per_atom_energy_mean": float((energy / n).mean()),
        "per_atom_energy_std": float((energy / n).std(ddof=1)),
        "total_energy_std": float(energy.std(ddof=1)),
        "forces_rms": float(np.sqrt((forces**2).mean())),
        "per_type_forces_rms": by_type(lambda mask: np.sqrt((forces[mask] ** 2).mean())),
    }


def assert_equal(found, wanted, tolerance=1e-12):
    for name, value in wanted.items():
        values = value if isinstance(value, dict) else {"": value}
        others = found[name] if isinstance(value, dict) else {"": found[name]}
        assert values.keys() == others.keys()
        for key, number in values.items():
            assert math.isclose(others[key], number, rel_tol=tolerance), (name, key)


def compositions(frames, types=4):
    return np.array([np.bincount(f["types"], minlength=types) for f in frames], dtype=np.float64)


def water(count=5):
    frames = make_frames(count)
    for frame in frames:
        frame["types"] = np.array([0, 0, 2] * (len(frame["types"]) // 3 + 1))
        n = len(frame["types"])
        frame["forces"], frame["edges"] = np.ones((n, 3)), np.zeros((2, 0), dtype=np.int64)
        frame["energy"] = -5.0 * n
    return frames

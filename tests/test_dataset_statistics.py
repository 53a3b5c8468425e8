"""Statistics of data sets against float64 and extended-precision numpy."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmlip.data import (
    COMMON,
    STATISTICS,
    CommonDatasetStatistics,
    DatasetStatistics,
    EnergyOnlyDatasetStatistics,
    StatisticUnavailableError,
)
from fastmlip.data.running import RunningLeastSquares, RunningMoments

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


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("mean", [0.0, 1e5])
def test_exact_to_1e12(mean, size):
    frames = make_frames(300, mean=mean)
    found = CommonDatasetStatistics(type_names=NAMES).get_statistics(to_batches(frames, size))
    assert_equal(found, expected(frames))
    energy = np.array([f["energy"] for f in frames])
    lstsq = np.linalg.lstsq(compositions(frames), energy, rcond=None)[0]
    # numpy's own least squares is not exact to 1e-12 either
    assert_equal(found, {"per_type_energy_lstsq": dict(zip(NAMES, lstsq, strict=True))}, 1e-11)


@pytest.mark.parametrize("size", [1, 7])
def test_a_small_spread_around_a_large_mean_keeps_its_digits(size):
    """0.01 eV around 1e5 eV; the naive difference of means of squares would lose all of it."""
    energy = 1e5 + 0.01 * np.random.default_rng(5).normal(size=400)
    frames = make_frames(400, atoms=(1, 2))
    for frame, value in zip(frames, energy, strict=True):
        frame["energy"] = value
    found = CommonDatasetStatistics(type_names=NAMES).get_statistics(to_batches(frames, size))
    wide = energy.astype(np.longdouble)
    assert_equal(found, {"per_atom_energy_mean": wide.mean()}, 1e-15)
    for name in ("total_energy_std", "per_atom_energy_std"):
        assert_equal(found, {name: wide.std(ddof=1)})
        assert_equal(found, {name: energy.std(ddof=1)})


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50),
    offset=st.sampled_from([0.0, 1e5, -1e8]),
    cuts=st.lists(st.integers(0, 50), max_size=5),
)
def test_moments_of_any_split_are_the_same(values, offset, cuts):
    data = np.array(values) + offset
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    moments, merged = RunningMoments(), RunningMoments()
    for start, end in pairwise(ends):
        moments.update(torch.tensor(data[start:end]))
        part = RunningMoments()
        part.update(torch.tensor(data[start:end]))
        merged.merge(part)
    wide = data.astype(np.longdouble)
    for found in (moments, merged):
        assert math.isclose(found.mean.item(), wide.mean(), rel_tol=1e-13, abs_tol=1e-12)
        # numbers of this size have an absolute spacing of 1e-16 times it
        spacing = 1e-15 * (abs(offset) + 1e3)
        assert math.isclose(found.std().item(), wide.std(ddof=1), rel_tol=1e-12, abs_tol=spacing)


def test_least_squares_is_exact_for_exact_data():
    counts = np.tile(compositions(make_frames(500, mean=0.0)), (20, 1))
    energies = counts @ (ATOMIC + 1e5)
    running = RunningLeastSquares(4)
    for start in range(0, len(counts), 3):
        running.update(
            torch.tensor(counts[start : start + 3]), torch.tensor(energies[start : start + 3])
        )
        assert running._num_waiting < 5000
    found, unknown = running.solve()
    np.testing.assert_allclose(found, ATOMIC + 1e5, rtol=1e-12)
    assert unknown.abs().max() < 1e-12
    assert len(running._factor) == 5, "rows must not pile up"


def water(count=5):
    frames = make_frames(count)
    for frame in frames:
        frame["types"] = np.array([0, 0, 2] * (len(frame["types"]) // 3 + 1))
        n = len(frame["types"])
        frame["forces"], frame["edges"] = np.ones((n, 3)), np.zeros((2, 0), dtype=np.int64)
        frame["energy"] = -5.0 * n
    return frames


def test_types_that_compositions_cannot_tell_apart_are_named():
    frames = water()
    manager = CommonDatasetStatistics(type_names=NAMES)
    found = manager.get_statistics(to_batches(frames, 2))
    with pytest.warns(UserWarning) as caught:
        values = found["per_type_energy_lstsq"]
    message = str(caught[0].message)
    assert "H, O apart" in message and "C, Cu never occurs" in message
    # minimum norm for E = -15 eV per H2O: (2, 1) * -15 / 5
    np.testing.assert_allclose(list(values.values()), [-6.0, 0.0, -3.0, 0.0], atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = found["per_atom_energy_mean"]


def test_two_groups_of_types_are_named_one_by_one():
    frames = water(2)
    for frame in water(2):
        frame["types"] = frame["types"] + 1  # C2 Cu
        frames.append(frame)
    found = CommonDatasetStatistics(type_names=NAMES).get_statistics(to_batches(frames, 4))
    with pytest.warns(UserWarning, match=r"H, O apart.*C, Cu apart"):
        found.get("per_type_energy_lstsq")


def test_types_that_never_occur_are_named(caplog):
    frames = make_frames(20, types=3)
    found = CommonDatasetStatistics(type_names=NAMES).get_statistics(to_batches(frames, 4))
    assert "never occur in the data: Cu" in caplog.text
    for name in ("per_type_forces_rms", "per_type_num_neighbors_mean"):
        assert name not in found
        with pytest.raises(StatisticUnavailableError, match=f"{name}: type Cu never occurs"):
            found.get(name)
    assert found["forces_rms"] > 0
    assert found.get("no such statistic") is None
    with pytest.raises(KeyError):
        found["no such statistic"]


@pytest.mark.parametrize("size", [1, 9])
def test_nan_labels_are_skipped_and_counted_when_asked(size):
    frames = make_frames(40, seed=3)
    batches = to_batches(frames, size)
    for batch in batches:
        batch["total_energy"][0] = torch.nan
        batch["forces"][0, 1:] = torch.nan
    kept = {k: torch.cat([b[k] for b in batches]).numpy() for k in ("forces", "total_energy")}
    known = ~np.isnan(kept["total_energy"][:, 0])
    found = CommonDatasetStatistics(type_names=NAMES, ignore_nan=True).get_statistics(batches)
    assert found.nan_counts == {"total_energy": len(batches), "forces": 2 * len(batches)}
    n = compositions(frames).sum(1)
    if size > 1:
        per_atom = (kept["total_energy"][:, 0] / n)[known]
        assert math.isclose(found["per_atom_energy_mean"], per_atom.mean(), rel_tol=1e-12)
        lstsq = np.linalg.lstsq(
            compositions(frames)[known], kept["total_energy"][known, 0], rcond=None
        )[0]
        np.testing.assert_allclose(list(found["per_type_energy_lstsq"].values()), lstsq, rtol=1e-11)
    else:
        assert "per_atom_energy_mean" in found.unavailable
    rms = math.sqrt(np.nanmean(kept["forces"] ** 2))
    assert math.isclose(found["forces_rms"], rms, rel_tol=1e-12)
    kinds = np.concatenate([f["types"] for f in frames])
    for t, name in enumerate(NAMES):
        rms = math.sqrt(np.nanmean(kept["forces"][kinds == t] ** 2))
        assert math.isclose(found["per_type_forces_rms"][name], rms, rel_tol=1e-12)


def test_nan_labels_are_refused_otherwise():
    batches = to_batches(make_frames(10), 5)
    batches[1]["forces"][0, 0] = torch.nan
    found = CommonDatasetStatistics(type_names=NAMES).get_statistics(batches)
    with pytest.raises(
        StatisticUnavailableError, match=r"1 values of 'forces' are NaN.*ignore_nan"
    ):
        found.get("forces_rms")
    assert found["per_atom_energy_mean"] > 0


def test_isolated_atoms_are_frames_of_one_atom_without_neighbours():
    frames = make_frames(10, atoms=(2, 12))
    for t in range(4):
        for energy in (ATOMIC[t], ATOMIC[t] + (0.5 if t == 1 else 0.0)):
            alone = np.zeros((2, 0), dtype=np.int64)
            frames.insert(
                3, {"types": np.array([t]), "energy": energy, "edges": alone,
                    "forces": np.zeros((1, 3))},
            )  # fmt: skip
    frames.append({**frames[3], "energy": 77.0, "edges": np.zeros((2, 6), dtype=np.int64)})
    for size in (1, 4, 100):
        found = CommonDatasetStatistics(type_names=NAMES).get_statistics(to_batches(frames, size))
        with pytest.warns(UserWarning, match="type C differ in energy"):
            values = found["isolated_atom_energies"]
        np.testing.assert_allclose(
            list(values.values()), ATOMIC + np.array([0, 0.25, 0, 0]), rtol=1e-14
        )
    missing = [f for f in frames if list(f["types"]) != [2]]
    found = CommonDatasetStatistics(type_names=NAMES).get_statistics(to_batches(missing, 4))
    with pytest.raises(StatisticUnavailableError, match="without neighbours of type O;"):
        found.get("isolated_atom_energies")


def test_pair_statistics_name_the_centre_first():
    """One A atom with three B neighbours, of which one has the A atom as its neighbour."""
    batch = {
        "pos": torch.zeros(4, 3),
        "atom_types": torch.tensor([0, 1, 1, 1]),
        "edge_index": torch.tensor([[0, 0, 0, 1], [1, 2, 3, 0]]),
    }
    manager = DatasetStatistics(["per_type_pair_num_neighbors_mean"], type_names=["A", "B"])
    found = manager.get_statistics([batch])["per_type_pair_num_neighbors_mean"]
    assert found == {"A_A": 0.0, "A_B": 3.0, "B_A": 1 / 3, "B_B": 0.0}


def test_isolated_atoms_count_in_their_own_place():
    """Atom 0 has no neighbour: its type has the mean 0, not the type of the last atom."""
    batch = {
        "pos": torch.zeros(3, 3),
        "atom_types": torch.tensor([0, 1, 1]),
        "edge_index": torch.tensor([[1, 2], [2, 1]]),
    }
    manager = DatasetStatistics(["per_type_num_neighbors_mean"], type_names=["A", "B"])
    assert manager.get_statistics([batch]) == {"per_type_num_neighbors_mean": {"A": 0.0, "B": 1.0}}


def test_one_type_has_pairs_and_types_of_its_own():
    batch = {
        "pos": torch.zeros(2, 3),
        "atom_types": torch.tensor([[0], [0]]),
        "edge_index": torch.tensor([[0, 1], [1, 0]]),
    }
    names = ["per_type_num_neighbors_mean", "per_type_pair_num_neighbors_mean"]
    found = DatasetStatistics(names, type_names=["A"]).get_statistics([batch])
    assert found == {names[0]: {"A": 1.0}, names[1]: {"A_A": 1.0}}


def test_merging_equals_one_pass():
    frames = make_frames(60)
    parts = []
    for part in (frames[:25], frames[25:]):
        manager = CommonDatasetStatistics(type_names=NAMES)
        for batch in to_batches(part, 4):
            manager(batch)
        parts.append(manager)
    parts[0].merge(parts[1])
    merged = parts[0].compute()
    assert merged.num_frames == 60
    assert_equal(merged, expected(frames))
    with pytest.raises(ValueError, match="other"):
        parts[0].merge(EnergyOnlyDatasetStatistics(type_names=NAMES))


def test_a_second_pass_starts_anew():
    manager = CommonDatasetStatistics(type_names=NAMES)
    first = manager.get_statistics(to_batches(make_frames(20), 4))
    assert manager.get_statistics(to_batches(make_frames(20), 4)) == first


def test_float32_data_are_summed_in_float64():
    frames = make_frames(50)
    batches = to_batches(frames, 5)
    for batch in batches:
        batch["forces"] = batch["forces"].float()
    found = CommonDatasetStatistics(type_names=NAMES).get_statistics(batches)
    forces = torch.cat([batch["forces"] for batch in batches]).double()
    assert math.isclose(found["forces_rms"], forces.square().mean().sqrt().item(), rel_tol=1e-14)


def test_energy_only_data_need_no_forces():
    batches = [{k: v for k, v in b.items() if k != "forces"} for b in to_batches(make_frames(9), 3)]
    found = EnergyOnlyDatasetStatistics(type_names=NAMES).get_statistics(batches)
    assert found["total_energy_std"] > 0 and "forces_rms" not in found
    with pytest.raises(ValueError, match=r"no field 'forces'.*EnergyOnlyDatasetStatistics"):
        CommonDatasetStatistics(type_names=NAMES).get_statistics(batches)
    manager = CommonDatasetStatistics(type_names=NAMES, skip_missing=True)
    found = manager.get_statistics(batches)
    with pytest.raises(StatisticUnavailableError, match="forces_rms: the data have no field"):
        found.get("forces_rms")


@pytest.mark.parametrize("field", ["atom_types", "edge_index", "total_energy", "forces"])
def test_missing_fields_are_named(field):
    batch = to_batches(make_frames(4), 4)[0]
    del batch[field]
    with pytest.raises(ValueError, match=f"the data have no field '{field}'.*needed for"):
        CommonDatasetStatistics(type_names=NAMES).get_statistics([batch])
    whole = to_batches(make_frames(4), 4)[0]
    with pytest.raises(ValueError, match=f"no field '{field}', but the first batch has it"):
        CommonDatasetStatistics(type_names=NAMES).get_statistics([whole, batch])


def test_errors_name_what_is_wrong():
    batch = to_batches(make_frames(4), 4)[0]
    with pytest.raises(ValueError, match="statistics: expected names"):
        DatasetStatistics(["no such"])
    with pytest.raises(ValueError, match="type_names: needed for per_type"):
        CommonDatasetStatistics()
    with pytest.raises(ValueError, match=r"dataloader_kwargs: \['dataset'\]"):
        CommonDatasetStatistics({"dataset": 1}, NAMES)
    for low in (-1, 7):
        bad = {**batch, "atom_types": torch.full_like(batch["atom_types"], low)}
        with pytest.raises(ValueError, match=f"found type {low}, expected 0 to 3"):
            CommonDatasetStatistics(type_names=NAMES).update(bad)
    with pytest.raises(ValueError, match="total_energy: expected 4 values"):
        CommonDatasetStatistics(type_names=NAMES).update(
            {**batch, "total_energy": batch["total_energy"][:2]}
        )
    with pytest.raises(ValueError, match="num_atoms: expected positive numbers"):
        CommonDatasetStatistics(type_names=NAMES).update(
            {**batch, "num_atoms": batch["num_atoms"] + 1}
        )
    with pytest.raises(ValueError, match=r"forces: expected \["):
        CommonDatasetStatistics(type_names=NAMES).update({**batch, "forces": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match="edge_index: found atom 900"):
        CommonDatasetStatistics(type_names=NAMES).update(
            {**batch, "edge_index": torch.tensor([[900], [0]])}
        )
    with pytest.raises(ValueError, match="the data set is empty"):
        CommonDatasetStatistics(type_names=NAMES).get_statistics([])


def test_one_frame_has_no_standard_deviation():
    found = CommonDatasetStatistics(type_names=NAMES).get_statistics(to_batches(make_frames(1), 1))
    with pytest.raises(StatisticUnavailableError, match="at least two frames"):
        found.get("total_energy_std")


def test_statistics_without_types_need_no_type_names():
    names = [name for name in COMMON if not STATISTICS[name].per]
    frames = make_frames(30)
    found = DatasetStatistics(names).get_statistics(to_batches(frames, 4))
    wanted = expected(frames)
    assert_equal(found, {name: wanted[name] for name in names})

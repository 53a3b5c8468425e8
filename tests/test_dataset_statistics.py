"""Statistics of data sets against float64 and extended-precision numpy."""

import math

import numpy as np
import pytest
import torch
from dataset_cases import (
    ATOMIC,
    NAMES,
    assert_equal,
    compositions,
    expected,
    make_frames,
    to_batches,
)

from fastmlip.data import (
    COMMON,
    STATISTICS,
    CommonDatasetStatistics,
    DatasetStatistics,
    EnergyOnlyDatasetStatistics,
    StatisticUnavailableError,
)


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


def test_a_type_that_never_has_a_neighbour_is_named():
    """Atom 0 has none: models would divide by zero. (Its type has the mean 0, not the last's.)"""
    batch = {
        "pos": torch.zeros(3, 3),
        "atom_types": torch.tensor([0, 1, 1]),
        "edge_index": torch.tensor([[1, 2], [2, 1]]),
    }
    names = ["num_neighbors_mean", "per_type_num_neighbors_mean"]
    found = DatasetStatistics(names, type_names=["A", "B"]).get_statistics([batch])
    assert found == {"num_neighbors_mean": 2 / 3}
    assert "no atom of type A has a neighbour" in found.unavailable["per_type_num_neighbors_mean"]


def test_data_without_neighbours_suggest_no_zero(caplog):
    batch = {
        "pos": torch.zeros(2, 3), "atom_types": torch.tensor([0, 0]),
        "edge_index": torch.zeros(2, 0, dtype=torch.long),
    }  # fmt: skip
    names = ["num_neighbors_mean", "avg_num_neighbors", "per_type_num_neighbors_mean"]
    with caplog.at_level("INFO"):
        found = DatasetStatistics(names, type_names=["A"]).get_statistics([batch])
    assert not found and set(found.unavailable) == set(names)
    assert "r_max" in found.unavailable["avg_num_neighbors"]
    assert "avg_num_neighbors: left out" in caplog.text


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

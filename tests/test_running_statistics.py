"""Running moments and least squares: exact in any split, and what they cannot tell apart."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from dataset_cases import (
    ATOMIC,
    NAMES,
    compositions,
    make_frames,
    to_batches,
    water,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmlip.data import CommonDatasetStatistics
from fastmlip.data.running import RunningLeastSquares, RunningMoments


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

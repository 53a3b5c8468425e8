"""NequIP models with fastmlip against the same models without: outputs and training gradients.

float32 is compared to stock in float64, with the same weights, and to stock. A total energy is a
sum of atomic energies that may cancel, so its error is measured against the sum of their sizes.
"""

from functools import lru_cache

import pytest
from nequip_cases import (
    ODD,
    PRESETS,
    build,
    exact,
    force_loss_gradients,
    outputs,
    relative_error,
    structures,
)

import fastmlip

pytestmark = pytest.mark.usefixtures("nequip_state")

BOUND = {"float64": 1e-10, "float32": 1e-5}
STRUCTURES = ("own images", "lone atom", "batch", "bulk")
SLOWEST = ("XL", "float32")
CASES = [
    pytest.param(
        config, dtype, structure,
        id=f"{config}-{dtype}-{structure}",
        marks=[pytest.mark.slow]
        if (config in ("L", "XL") and structure != "own images") or (config, dtype) == SLOWEST
        else [],
    )
    for config in (*PRESETS, *ODD)
    for dtype in BOUND
    for structure in STRUCTURES
]  # fmt: skip


@lru_cache(maxsize=1)  # cases of one model come one after the other
def models(config, dtype):
    """The stock model, the same in float64, and the accelerated one, with the same weights."""
    stock = build(config, dtype)
    truth = stock if dtype == "float64" else exact(config, stock)
    return stock, truth, fastmlip.accelerate(build(config, dtype))


@lru_cache(maxsize=1)
def data():
    return structures()


def assert_same(got, by_stock, truth, bound, scales):
    """Near the exact numbers, and near stock's own, where half of ``bound`` is left of it: where
    stock's rounding takes more, the distance to stock measures stock."""
    for name, reference in truth.items():
        scale = scales.get(name)
        assert relative_error(got[name], reference, scale) <= bound, name
        if relative_error(by_stock[name], reference, scale) <= bound / 2:
            assert relative_error(got[name], by_stock[name], scale) <= bound, name


@pytest.mark.parametrize(("config", "dtype", "structure"), CASES)
def test_outputs_and_training_gradients_match_stock(config, dtype, structure):
    stock, truth, fast = models(config, dtype)
    frame, bound = data()[structure], BOUND[dtype]
    by_stock, got = outputs(stock, frame), outputs(fast, frame)
    want = by_stock if truth is stock else outputs(truth, frame)
    assert all(got[name].dtype == value.dtype for name, value in by_stock.items())
    assert_same(got, by_stock, want, bound, {"total_energy": want["atomic_energy"].abs().sum()})
    by_stock, got = force_loss_gradients(stock, frame), force_loss_gradients(fast, frame)
    want = by_stock if truth is stock else force_loss_gradients(truth, frame)
    assert_same(got, by_stock, want, bound, {})
    if structure != "lone atom":
        assert all(reference.abs().max() > 0 for reference in want.values())


@pytest.mark.parametrize("config", ["S", "l2 5-2-7 parity"])
def test_the_swap_is_what_runs(config, monkeypatch):
    """Without this, comparing a model to itself would pass."""
    calls = []
    kernel = fastmlip.ops.radial_conv

    def counted(*operands):
        calls.append(operands)
        return kernel(*operands)

    monkeypatch.setattr(fastmlip.ops, "radial_conv", counted)
    stock, _, fast = models(config, "float64")
    calls.clear()  # of the self-check
    outputs(stock, data()["own images"])
    assert not calls
    outputs(fast, data()["own images"])
    assert len(calls) == sum(type(m).__name__ == "FastInteractionBlock" for m in fast.modules())


@pytest.mark.parametrize("config", ["M", *ODD])
def test_float32_is_as_close_to_float64_as_stock_float32(config):
    """Errors against a float64 model of the same weights: at most twice stock's, and 1e-5."""
    stock, truth, fast = models(config, "float32")
    frame = data()["bulk"]
    want, by_stock, by_fast = outputs(truth, frame), outputs(stock, frame), outputs(fast, frame)
    for name in ("atomic_energy", "forces", "stress"):
        limit = max(2 * relative_error(by_stock[name], want[name]), 1e-6)
        assert relative_error(by_fast[name], want[name]) <= min(limit, 1e-5), name

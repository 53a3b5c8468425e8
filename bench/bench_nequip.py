"""Whole NequIP presets, stock against fastmlip: energy and forces, and one training step.

Energy and forces with frozen parameters, as in molecular dynamics, and with parameters that could
be trained. A 108-atom disordered fcc alloy of three types, cutoff 5 A, float32, eager. The two
models share their weights and have agreed on energies, forces and parameter gradients before they
are timed.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.model import PresetNequIPGNNModel
from nequip.utils.global_state import set_global_state

import fastmlip
from fastmlip.testing.process import run_python

TYPE_NAMES = ["Cu", "Pd", "Au"]
NAMES = {"peer": "NequIP", "fastmlip": "fastmlip"}


@cache
def _frame():
    atoms = bulk("Au", "fcc", a=4.0, cubic=True) * (3, 3, 3)
    atoms.rattle(0.1, seed=1)
    data = compute_neighborlist_(from_ase(atoms), r_max=5.0)
    data[AtomicDataDict.ATOM_TYPE_KEY] = torch.randint(0, 3, (len(atoms),)).to(torch.int64)
    return data


@cache
def _models(preset, agree=True):
    set_global_state(allow_tf32=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = PresetNequIPGNNModel(
            preset=preset, seed=1, model_dtype="float32", type_names=TYPE_NAMES, r_max=5.0,
            avg_num_neighbors=40.0, per_type_energy_scales=1.0, per_type_energy_shifts=0.0,
        )  # fmt: skip
    fast = fastmlip.accelerate(copy.deepcopy(stock))
    if not agree:
        return {"peer": stock, "fastmlip": fast}
    expected, found = _training_step(stock), _training_step(fast)
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() <= 1e-4 * one.abs().max().clamp(min=1e-3)
    return {"peer": stock, "fastmlip": fast}


def _evaluate(model):
    out = model(dict(_frame()))
    return out[AtomicDataDict.TOTAL_ENERGY_KEY], out[AtomicDataDict.FORCE_KEY]


def _training_step(model):
    model.train()
    energy, forces = _evaluate(model)
    loss = energy.square().mean() / 108**2 + forces.square().mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [energy.detach(), forces.detach(), *(g for g in grads if g is not None)]


@cache
def _frozen(preset, who):
    model = copy.deepcopy(_models(preset)[who]).eval().requires_grad_(False)
    for one, other in zip(_evaluate(model), _evaluate(_models(preset)["peer"].eval()), strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    return model


def _inference(model):
    model.eval()
    _evaluate(model)


def _peak_memory():
    """This process' peak so far, in MiB (``ru_maxrss`` would count the process that started it)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _peak_of_one_training_step(preset, who):
    """Growth of the peak memory by two training steps, in MiB; for a fresh process."""
    model = _models(preset, agree=False)[who]
    before = _peak_memory()
    for _ in range(2):
        _training_step(model)
    return _peak_memory() - before


@pytest.mark.parametrize("who", ["peer", "fastmlip"])
def bench_peak_memory(compare, who):
    here = str(Path(__file__).parent)
    code = f"import bench_nequip as b; print(b._peak_of_one_training_step('M', {who!r}))"
    peak = float(run_python(code, PYTHONPATH=here).split()[-1])
    compare(NAMES[who], lambda: None, rounds=1, case="NequIP M", what="peak of a training step",
            peak_mib=peak)  # fmt: skip


@pytest.mark.parametrize("who", ["peer", "fastmlip"])
@pytest.mark.parametrize("what", ["energy+forces", "energy+forces, frozen", "training step"])
@pytest.mark.parametrize("preset", ["S", "M", "L"])
def bench_nequip(compare, preset, what, who):
    model = _frozen(preset, who) if "frozen" in what else _models(preset)[who]
    step = _training_step if what == "training step" else _inference
    edges = _frame()[AtomicDataDict.EDGE_INDEX_KEY].shape[1]
    slow = who == "peer" and preset != "S"
    compare(NAMES[who], lambda: step(model), rounds=3 if slow else 7, case=f"NequIP {preset}",
            what=what, note=f"108 atoms, {edges} edges")  # fmt: skip

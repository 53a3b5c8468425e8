"""Whole Allegro models, stock against fastmlip: energy and forces of compiled models, and one
training step.

Names are l_max, channels and layers. 64 scalar features, a disordered fcc alloy of three types,
cutoff 5 A, float32. Stock also runs eager; its better time is the one to beat.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache

import pytest
import torch
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.utils.global_state import set_global_state

import fastmlip
from fastmlip.testing.process import run_python

from .bench_inference import STRUCTURES, _alloy, _atoms, _frame, _run, export
from .bench_nequip import TYPE_NAMES, _peak_memory, _training_step

pytest.importorskip("allegro")
MODELS = {
    "l1 16 2": {"l_max": 1, "parity": True, "num_layers": 2, "num_tensor_features": 16},
    "l2 64 2": {"l_max": 2, "parity": True, "num_layers": 2, "num_tensor_features": 64},
    "l3 64 3": {"l_max": 3, "parity": False, "num_layers": 3, "num_tensor_features": 64},
}
WHO = {
    "Allegro": "eager", "Allegro AOTInductor": "stock", "fastmlip exact": "fast",
    "fastmlip tabulated": "tabulated",
}  # fmt: skip


def _build(name, compile_mode="eager"):
    from allegro.model import AllegroModel

    set_global_state(allow_tf32=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AllegroModel(
            seed=1, compile_mode=compile_mode, model_dtype="float32", type_names=TYPE_NAMES,
            r_max=5.0, radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed"},
            num_scalar_features=64, avg_num_neighbors=40.0, **MODELS[name],
        )  # fmt: skip


@cache
def _models(name):
    stock = _build(name)
    return {
        "stock": stock.eval(),
        "fast": fastmlip.accelerate(copy.deepcopy(stock)).eval(),
    }


def _model(name, who):
    stock = _models(name)["stock"]
    return fastmlip.tabulate(stock) if who == "tabulated" else _models(name)[who]


@cache
def _compiled(name, who):
    model = copy.deepcopy(_model(name, who)).requires_grad_(False)
    return torch._inductor.aoti_load_package(export(model, who))


@pytest.mark.parametrize("who", list(WHO))
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", list(MODELS))
def bench_allegro(compare, name, structure, who):
    data = _frame(structure)
    stock = _models(name)["stock"].requires_grad_(False)
    want = stock(dict(data))["forces"]
    if WHO[who] == "eager":
        model, run = stock, lambda m, d: m(dict(d))
    else:
        model, run = _compiled(name, WHO[who]), _run
    error = (run(model, data)["forces"] - want).abs().max()
    assert error <= 1e-5 * max(1.0, want.abs().max())
    compare(
        who, lambda: run(model, data), rounds=3 if WHO[who] == "eager" else 20,
        case=f"Allegro {name}", what=f"energy+forces, {structure}", size=("atoms", _atoms(data)),
        max_force_error=float(error), note=f"max |dF| {error:.1e}",
    )  # fmt: skip


@pytest.mark.parametrize("who", ["stock", "fast"])
@pytest.mark.parametrize("name", list(MODELS))
def bench_allegro_training(compare, name, who):
    """Eager on both sides."""
    models = {
        key: copy.deepcopy(model).requires_grad_(True) for key, model in _models(name).items()
    }
    expected, found = (_training_step(models[key]) for key in ("stock", who))
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() <= 1e-4 * one.abs().max().clamp(min=1e-3)
    title = {"stock": "Allegro", "fast": "fastmlip"}[who]
    compare(title, lambda: _training_step(models[who]), rounds=2 if who == "stock" else 5,
            case=f"Allegro {name}", what="training step", note="108 atoms")  # fmt: skip


@cache
def _two_frames():
    """Of 32 atoms: NequIP compiles no batch of one frame."""
    frames = []
    for atoms in (_alloy("108-atom alloy")[:32], _alloy("108-atom alloy, shuffled")[:32]):
        frame = compute_neighborlist_(from_ase(atoms), r_max=5.0)
        frame[AtomicDataDict.ATOM_TYPE_KEY] = torch.arange(len(atoms)) % 3
        frames.append(frame)
    return AtomicDataDict.batched_from_list(frames)


def _loss_and_gradients(model):
    out = model.train()(dict(_two_frames()))
    loss = out["total_energy"].square().mean() + out["forces"].square().mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *(g for g in grads if g is not None)]


@pytest.mark.parametrize("who", ["Allegro", "Allegro compiled", "fastmlip"])
@pytest.mark.parametrize("name", list(MODELS))
def bench_allegro_compiled_training(compare, name, who):
    """Two frames of 32 atoms; ``compile_mode: compile`` beside eager models."""
    model = _build(name, "compile" if "compiled" in who else "eager")
    if who == "fastmlip":
        fastmlip.accelerate(model)
    expected = _loss_and_gradients(_build(name))
    for one, other in zip(expected, _loss_and_gradients(model), strict=True):
        assert (one - other).abs().max() <= 1e-4 * one.abs().max().clamp(min=1e-3)
    compare(who, lambda: _loss_and_gradients(model), rounds=5 if who == "fastmlip" else 2,
            case=f"Allegro {name}", what="training step, batch", note="64 atoms")  # fmt: skip


def _peak_of_a_training_step(name, who):
    """Growth of the peak memory by two training steps, in MiB; for a fresh process."""
    model = _models(name)[who].requires_grad_(True)
    before = _peak_memory()
    for _ in range(2):
        _training_step(model)
    return _peak_memory() - before


@pytest.mark.parametrize("who", ["stock", "fast"])
@pytest.mark.parametrize("name", ["l2 64 2"])
def bench_allegro_peak_memory(compare, name, who):
    module = "from fastmlip.bench import bench_allegro as b"
    printed = run_python(f"{module}; print(b._peak_of_a_training_step({name!r}, {who!r}))")
    title = {"stock": "Allegro", "fast": "fastmlip"}[who]
    compare(title, lambda: None, rounds=1, case=f"Allegro {name}", what="peak of a training step",
            peak_mib=float(printed.split()[-1]))  # fmt: skip

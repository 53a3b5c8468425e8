"""Models and structures that the NequIP tests share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.model import NequIPGNNModel, PresetNequIPGNNModel
from nequip.utils.global_state import set_global_state

Tensor = torch.Tensor
DEFAULT_DTYPE = torch.get_default_dtype()
TYPE_NAMES = ["Na", "Cl", "O"]
R_MAX = 3.6
COMMON = {
    "seed": 7, "type_names": TYPE_NAMES, "r_max": R_MAX, "avg_num_neighbors": 12.0,
    "per_type_energy_scales": dict(zip(TYPE_NAMES, (1.0, 1.3, 0.7), strict=True)),
    "per_type_energy_shifts": dict.fromkeys(TYPE_NAMES, 0.0),
}  # fmt: skip
PRESETS = {name: {"preset": name} for name in ("S", "M", "L", "XL")}
ODD = {
    "l1 parity": {"l_max": 1, "parity": True, "num_features": 16, "num_layers": 3},
    "l2 5-2-7": {"l_max": 2, "parity": False, "num_features": [5, 2, 7], "num_layers": 3},
    "l2 5-2-7 parity": {"l_max": 2, "parity": True, "num_features": [5, 2, 7], "num_layers": 2},
    "l3 parity": {"l_max": 3, "parity": True, "num_features": [9, 3, 1, 4], "num_layers": 2},
    "l4 parity": {"l_max": 4, "parity": True, "num_features": 2, "num_layers": 2},
}
TINY = {"l_max": 1, "parity": True, "num_features": 4, "num_layers": 2, "radial_mlp_width": 8}
CONFIGS: dict[str, dict[str, Any]] = {**PRESETS, **ODD, "tiny": TINY}


@contextlib.contextmanager
def nequip_state() -> Iterator[None]:
    """NequIP's global state (default dtype float64), and the usual default dtype afterwards."""
    set_global_state(allow_tf32=False)
    torch.set_default_dtype(torch.float64)  # NequIP sets it in its first call only
    yield
    torch.set_default_dtype(DEFAULT_DTYPE)


def build(config: str, model_dtype: str, **more: Any) -> torch.nn.Module:
    """The stock model of a name in :data:`CONFIGS`, in evaluation mode, always the same weights."""
    kwargs = {**COMMON, **CONFIGS[config], "model_dtype": model_dtype, **more}
    make = PresetNequIPGNNModel if "preset" in kwargs else NequIPGNNModel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(**kwargs).eval()


def to_data(atoms: Atoms) -> AtomicDataDict.Type:
    """A frame with types in turn and its neighbour list."""
    data = compute_neighborlist_(from_ase(atoms), r_max=R_MAX)
    data[AtomicDataDict.ATOM_TYPE_KEY] = torch.arange(len(atoms)) % len(TYPE_NAMES)
    return data


def rattled(cells: int = 1) -> Atoms:
    """A disordered periodic crystal of 4 atoms a cell, with a sheared box."""
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True) * (cells, 1, 1)
    atoms.rattle(0.15, seed=11)
    shear = np.array([[1.02, 0.05, 0.0], [0.0, 0.98, -0.04], [0.03, 0.0, 1.01]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    return atoms


def structures() -> dict[str, AtomicDataDict.Type]:
    """Bulk; a cell so small that atoms see their own images; two frames in one; one lone atom."""
    tiny = Atoms("Cu2", [[0.1, 0.0, 0.2], [1.3, 1.2, 1.0]], cell=np.diag([2.5, 2.6, 2.9]), pbc=True)
    frames = [to_data(tiny), to_data(rattled())]
    return {
        "bulk": to_data(rattled(2)),
        "own images": frames[0],
        "batch": AtomicDataDict.batched_from_list(frames),
        "lone atom": to_data(Atoms("Cu", [[0.0, 0.0, 0.0]], cell=np.eye(3) * 9.0, pbc=True)),
    }


def exact(config: str, model: torch.nn.Module, **more: object) -> torch.nn.Module:
    """Stock with the weights of ``model``, computing in float64. In float32 stock's own rounding is
    up to 9e-6 of an atomic energy, too much to measure 1e-5 against."""
    truth = build(config, "float64", **more)
    with torch.no_grad():
        for wide, own in zip(truth.parameters(), model.parameters(), strict=True):
            wide.copy_(own)
    return truth


def outputs(model: torch.nn.Module, data: AtomicDataDict.Type) -> dict[str, Tensor]:
    """Energies, forces and stress."""
    out = model(dict(data))
    names = ("atomic_energy", "total_energy", "forces", "stress")
    return {name: out[name].detach() for name in names}


def force_loss_gradients(model: torch.nn.Module, data: AtomicDataDict.Type) -> dict[str, Tensor]:
    """Parameter gradients of a loss on energies, forces and stress, in training mode."""
    model.train()
    model.zero_grad(set_to_none=True)
    out = model(dict(data))
    loss = out["forces"].square().sum() + out["total_energy"].sin().sum()
    (loss + out["stress"].square().sum()).backward()
    model.eval()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.numel()
    }


def relative_error(value: Tensor, reference: Tensor, scale: Tensor | None = None) -> float:
    """max |value - reference| / max |scale|, scale being the reference where not given."""
    assert value.shape == reference.shape
    if reference.numel() == 0:
        return 0.0
    error = (value.double() - reference.double()).abs().max().item()
    size = (reference if scale is None else scale).abs().max().item()
    return error / size if size else error

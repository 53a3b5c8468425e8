"""Whole MACE models in their ASE calculators, stock against fastmlip: a step of molecular dynamics,
and a training step.

Two layers of ``RealAgnosticResidualInteractionBlock``, harmonics up to l = 3, correlation 3, 10
elements, 128 channels, random weights; a disordered fcc alloy of four of them, 42 edges an atom,
cutoff 5 A, float32. symmetrix-xl is compared where it is installed. MACE needs an environment of
its own, in which no other row runs: ``make bench-mace``.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from ase.build import bulk

import fastmlip

pytest.importorskip("mace", reason="make bench-mace")
from e3nn import o3
from mace import data, modules, tools
from mace.calculators import MACECalculator
from mace.tools import torch_geometric

HIDDEN = {"small": "128x0e", "medium": "128x0e + 128x1o", "large": "128x0e + 128x1o + 128x2e"}
NUMBERS = [8, 13, 14, 26, 28, 29, 46, 47, 78, 79]
CELLS = {"64-atom alloy": (4, 2, 2), "500-atom alloy": (5, 5, 5)}
WHO = ["MACE", "fastmlip exact", "fastmlip tabulated"]
if importlib.util.find_spec("symmetrix"):
    WHO.append("symmetrix-xl")


@cache
def _stock(name):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=5.0, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, num_interactions=2,
        num_elements=len(NUMBERS), atomic_numbers=NUMBERS, hidden_irreps=o3.Irreps(HIDDEN[name]),
        MLP_irreps=o3.Irreps("16x0e"), gate=torch.nn.functional.silu, correlation=3,
        atomic_energies=np.zeros(len(NUMBERS)), avg_num_neighbors=42.0, atomic_inter_scale=1.0,
        atomic_inter_shift=0.0, use_reduced_cg=False, interaction_cls=block,
        interaction_cls_first=block,
    ).eval()  # fmt: skip


@cache
def _atoms(structure):
    atoms, random = (
        bulk("Cu", "fcc", a=3.7, cubic=True) * CELLS[structure],
        np.random.default_rng(0),
    )
    atoms.numbers = random.choice([28, 29, 46, 79], len(atoms))
    atoms.positions += 0.05 * random.normal(size=atoms.positions.shape)
    return atoms


@cache
def _calculator(name, who):
    model = copy.deepcopy(_stock(name))
    if who == "symmetrix-xl":
        from symmetrix import Symmetrix

        file = Path(mkdtemp()) / f"{name}.model"
        torch.save(model, file)
        return Symmetrix(str(file), species=["Ni", "Cu", "Pd", "Au"], dtype="float32")
    if who == "fastmlip exact":
        fastmlip.accelerate(model)
    elif who == "fastmlip tabulated":
        model = fastmlip.tabulate(model)
    return MACECalculator(models=[model], device="cpu", default_dtype="float32")


def _step(atoms, calculator, number):
    atoms.positions[0, 0] += 1e-6 * (-1) ** number  # or nothing is computed
    calculator.calculate(atoms, ["energy", "forces"])
    return calculator.results["forces"]


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("structure", list(CELLS))
@pytest.mark.parametrize("name", list(HIDDEN))
def bench_mace(compare, name, structure, who):
    atoms = _atoms(structure).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = _step(atoms.copy(), _calculator(name, "MACE"), 0)
        calculator = _calculator(name, who)
    error = abs(_step(atoms.copy(), calculator, 0) - want).max()
    assert error <= 1e-5 * max(1.0, abs(want).max())
    numbers = itertools.count()
    compare(
        who, lambda: _step(atoms, calculator, next(numbers)), rounds=3 if who == "MACE" else 20,
        case=f"MACE {name}", what=f"step in ASE, {structure}", size=("atoms", len(atoms)),
        max_force_error=float(error), note=f"max |dF| {error:.1e} of {abs(want).max():.1e}",
    )  # fmt: skip


@pytest.mark.parametrize("who", ["MACE", "fastmlip"])
@pytest.mark.parametrize("name", ["medium"])
def bench_mace_training(compare, name, who):
    """The loss of energies and forces, and its gradients."""
    atoms, model = _atoms("64-atom alloy"), copy.deepcopy(_stock(name)).train()
    table = tools.AtomicNumberTable(NUMBERS)
    config = data.config_from_atoms(atoms, key_specification=data.KeySpecification())
    graphs = [data.AtomicData.from_config(config, z_table=table, cutoff=5.0)]
    batch = next(iter(torch_geometric.dataloader.DataLoader(graphs, 1)))
    if who == "fastmlip":
        fastmlip.accelerate(model)

    def step():
        model.zero_grad()
        out = model(batch.clone().to_dict(), training=True)
        (out["energy"].square().sum() + out["forces"].square().sum()).backward()

    compare(who, step, rounds=2 if who == "MACE" else 10, case=f"MACE {name}",
            what="training step", note="64 atoms")  # fmt: skip

"""Tabulated models of SevenNet's: splines in the place of radial networks."""

import copy

import numpy as np
import pytest
import torch
from ase.build import bulk

import fastmlip
from fastmlip.integrations import probes
from fastmlip.integrations.swap import report

pytest.importorskip("sevenn", reason="pip install 'fastmlip[sevennet]'")
import sevennet_cases as cases
from e3nn.util import jit

from fastmlip.integrations.sevennet.models import host_model

F32 = torch.float32


@pytest.fixture(scope="module", params=["typed", "parity, XPLOR", "linear"])
def models(request):
    stock = cases.small(request.param, F32)
    return stock, fastmlip.tabulate(stock)


def test_energies_forces_and_stress(models):
    stock, fast = models
    assert "intervals" in report(fast)[0].reason
    for atoms in (cases.crystal(), cases.crystal(repeat=1, a=3.1)[:2]):
        want = cases.run(stock, atoms, dtype=F32)
        cases.assert_same(cases.run(fast, atoms, dtype=F32), want, 2e-5)


def test_the_check_passes(models):
    assert fastmlip.check(copy.deepcopy(models[1]), against=models[0]).passed


def test_copies_compute_the_same(models):
    _, fast = models
    want = cases.run(fast, cases.crystal(), dtype=F32)
    found = cases.run(copy.deepcopy(fast), cases.crystal(), dtype=F32)
    assert all(torch.equal(found[name], value) for name, value in want.items())


@pytest.mark.parametrize("name", ["typed", "parity, XPLOR"])
def test_no_jump_where_pieces_meet_and_at_the_cutoff(name):
    """A dimer pulled apart through cutoff_on (3.5) and the cutoff (4.5)."""
    fast = fastmlip.tabulate(cases.small(name, F32))
    stock = cases.small(name, F32)
    for middle in (3.5, 4.5):
        distances = middle + np.linspace(-2e-3, 2e-3, 9)
        found = []
        for model in (stock, fast):
            forces = []
            for distance in distances:
                atoms = cases.molecule()[:2]
                atoms.positions[:] = [[0, 0, 0], [distance, 0, 0]]
                run = cases.run(model, atoms, dtype=F32)
                forces.append(float(run["inferred_force"][0, 0]))
            found.append(np.array(forces))
        assert abs(found[1] - found[0]).max() <= 2e-6


def test_virials_of_atoms(models):
    stock, fast = (copy.deepcopy(model) for model in models)
    name = "inferred_atomic_virial"
    virials = []
    for model in (stock, fast):
        model.force_output.use_atomic_virial = True
        virials.append(cases.run(model, cases.crystal(), dtype=F32, outputs=(name,)))
    cases.assert_same(virials[1], virials[0], 2e-5)


@pytest.mark.parametrize("change", ["train", "hook", "module", "state", "script"])
def test_what_tables_cannot_follow_is_refused(models, change):
    stock, fast = models[0], copy.deepcopy(models[1])
    if change == "state":
        with pytest.raises(RuntimeError, match="takes no state dict"):
            fastmlip.tabulate(stock).load_state_dict(stock.state_dict())
        return
    if change == "script":
        with pytest.raises(RuntimeError, match="cannot be scripted"):
            jit.script(fast)
        return
    conv = fast.get_submodule("1_convolution")
    if change == "train":
        fast.requires_grad_(True)
    elif change == "hook":
        conv.weight_nn.layer0.register_forward_hook(lambda *_: None)
    else:
        conv.weight_nn.layer0 = torch.nn.Linear(8, 16)
    with pytest.raises(RuntimeError, match="tabulated model cannot"):
        cases.run(fast, cases.crystal(), dtype=F32)


def test_tables_are_made_anew_of_the_networks():
    """A model with coarse tables is compared with its networks, not with these tables."""
    stock = cases.small("typed", F32)
    coarse = fastmlip.tabulate(stock, tol=1e-2)
    once, twice = fastmlip.tabulate(stock), fastmlip.tabulate(coarse)
    assert once.table_metadata == twice.table_metadata != coarse.table_metadata


def test_a_tolerance_that_cannot_be_reached():
    with pytest.raises(ValueError, match=r"tol: 1.0e-12 eV/Angstrom was not reached"):
        fastmlip.tabulate(cases.small("typed", F32), tol=1e-12)


def test_a_pretrained_model():
    """89 elements, of which probes have all."""
    stock = cases.pretrained("7net-0")
    fast = fastmlip.tabulate(stock)
    elements = torch.cat([f["atom_types"] for f in probes.ordinary(host_model(stock), None)])
    assert len(elements.unique()) > 40
    for symbols, a in ((("Cu",), 4.0), (("Mg", "O"), 4.3), (("Na", "Cl", "K", "Br"), 6.0)):
        atoms = cases.crystal(symbols, a=a)
        want = cases.run(stock, atoms, stock.cutoff, F32)
        cases.assert_same(cases.run(fast, atoms, stock.cutoff, F32), want, 2e-5)


def test_given_structures_are_the_probes():
    atoms = bulk("CuO", "rocksalt", a=4.26)
    atoms.rattle(0.1, seed=1)
    assert "intervals" in fastmlip.tabulate(cases.small("typed", F32), structures=atoms).remark
    with pytest.raises(ValueError, match="not among the model's types"):
        fastmlip.tabulate(cases.small("typed", F32), structures=bulk("Au"))

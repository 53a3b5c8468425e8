"""``ForceStressOutput`` with a triple product for the volume: what the host gives, to the last
bits, and the parts that the parity of whole models does not reach."""

import numpy as np
import pytest
import torch
from ase import Atoms
from nequip.data import AtomicDataDict
from nequip_cases import build, rattled, structures, to_data

import fastmlip
from fastmlip.integrations.nequip.force_stress import volumes

NAMES = ("total_energy", "forces", "virial", "stress")


@pytest.fixture(scope="module")
def models(nequip_state):
    return build("tiny", "float64"), fastmlip.accelerate(build("tiny", "float64"))


def molecule():
    return to_data(Atoms("CuPd", [[0.0, 0.0, 0.0], [1.7, 0.3, 0.2]], cell=np.zeros((3, 3))))


def left_handed():
    atoms = rattled()
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    return to_data(atoms)


def batch_without_volume():
    return AtomicDataDict.batched_from_list([to_data(rattled()), molecule()])


def no_cell():
    data = molecule()
    return {key: data[key] for key in ("pos", "atom_types", "edge_index")}


FRAMES = {
    "left-handed": left_handed, "no volume": molecule, "no cell": no_cell,
    "batch without volume": batch_without_volume, "batch": lambda: structures()["batch"],
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_it_is_the_hosts(models, name):
    want, got = (model(dict(FRAMES[name]())) for model in models)
    assert set(want) <= set(got)
    for key in NAMES:
        assert want[key].shape == got[key].shape, key
        torch.testing.assert_close(got[key], want[key], rtol=1e-10, atol=1e-11, equal_nan=True)
    if "no" in name and name != "no cell":
        assert got["stress"][-1].isnan().all()


def test_what_comes_in_stays_as_it_was(models):
    data = to_data(rattled())
    pos, cell = data["pos"], data["cell"].clone()
    out = models[1](dict(data))
    assert not pos.requires_grad and "_displacement" not in out
    torch.testing.assert_close(out["cell"], cell, rtol=0, atol=0)


def test_a_loss_on_stress_has_no_nan_from_a_frame_without_volume(models):
    gradients = []
    for model in models:
        model.train()
        out = model(dict(batch_without_volume()))
        out["stress"][0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        model.eval().zero_grad(set_to_none=True)
    assert gradients[0]
    for want, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_volumes():
    cell = torch.randn(7, 3, 3, dtype=torch.float64, requires_grad=True)
    want = torch.linalg.det(cell).abs()
    torch.testing.assert_close(volumes(cell).view(-1), want)
    assert torch.autograd.gradcheck(volumes, cell)
    assert volumes(torch.zeros(2, 3, 3)).tolist() == [[[0.0]], [[0.0]]]


def test_edge_vectors_and_energies_alone_are_the_hosts_own(models):
    data = to_data(rattled())
    vectors = models[0](dict(data))["edge_vectors"].detach()
    given = {key: data[key] for key in ("atom_types", "edge_index")}
    want, got = (model({**given, "edge_vectors": vectors.clone()}) for model in models)
    torch.testing.assert_close(got["edge_forces"], want["edge_forces"], rtol=1e-10, atol=1e-11)
    models[1].model.do_derivatives = False
    assert "forces" not in models[1](dict(data))
    models[1].model.do_derivatives = True


def test_the_summary_names_it(models):
    rows = {row.module: row.status for row in fastmlip.summary(models[1])}
    assert rows["FastForceStressOutput"] == "swapped"
    assert {row.module: row.status for row in fastmlip.summary(models[0])}[
        "ForceStressOutput"
    ] == "ready"

"""On every preset: forces are the gradient of the energy, the Hessian is that of the forces."""

import pytest
import torch
from nequip_cases import PRESETS, build, relative_error, structures

import fastmlip

pytestmark = pytest.mark.usefixtures("nequip_state")

STEP = 2e-5  # Angstrom


def displaced(model, frame, shift):
    out = model({**frame, "pos": frame["pos"] + shift})
    return out["total_energy"].detach().sum(), out["forces"].detach()


def directions(frame):
    """Three random displacements of all atoms at once."""
    shape = (3, *frame["pos"].shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(scope="module", params=PRESETS)
def case(request):
    """An accelerated float64 model, two atoms that see their own images, and there the Hessian
    times each direction."""
    model = fastmlip.accelerate(build(request.param, "float64"))
    frame = structures()["own images"]
    model.train()  # keeps the graph of the forces
    pos = frame["pos"].clone().requires_grad_()
    forces = model({**frame, "pos": pos})["forces"]
    products = [
        -torch.autograd.grad((forces * direction).sum(), pos, retain_graph=True)[0]
        for direction in directions(frame)
    ]
    model.eval()
    return model, frame, torch.stack(products)


def test_forces_are_the_negative_gradient_of_the_energy(case):
    model, frame, _ = case
    forces = model(dict(frame))["forces"].detach()
    for direction in directions(frame)[:2]:
        up, down = (displaced(model, frame, sign * STEP * direction)[0] for sign in (1, -1))
        slope = -(forces * direction).sum()
        assert slope.abs() > 1e-3 * forces.abs().max()
        assert relative_error((up - down) / (2 * STEP), slope) < 1e-6


def test_the_hessian_is_symmetric(case):
    _, frame, products = case
    hessian = products.flatten(1) @ directions(frame).flatten(1).T
    assert hessian.abs().max() > 0
    assert relative_error(hessian, hessian.T) < 1e-10


def test_the_hessian_is_the_derivative_of_the_forces(case):
    model, frame, products = case
    direction = directions(frame)[0]
    up, down = (displaced(model, frame, sign * STEP * direction)[1] for sign in (1, -1))
    assert relative_error(products[0], -(up - down) / (2 * STEP)) < 1e-5

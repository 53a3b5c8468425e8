"""Tabulated models of MACE's: forces agree with the exact ones, and what cannot be is refused."""

import copy
import io

import pytest
import torch

import fastmlip
from fastmlip.integrations.swap import report

pytest.importorskip(
    "mace", reason="MACE needs e3nn 0.4.4, an environment of its own: make test-mace"
)
import mace_cases as cases

F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", ["residual", "plain first", "scalars"])
def test_forces(name, dtype):
    stock = cases.small(name, dtype)
    fast = fastmlip.tabulate(stock, tol=1e-4)
    assert "tabulated" in report(fast)[0].reason
    for atoms in cases.STRUCTURES.values():
        want, got = (cases.run(model, atoms, dtype=dtype) for model in (stock, fast))
        assert (got["forces"] - want["forces"]).abs().max() <= 1e-4
        assert abs(got["energy"] - want["energy"]).max() <= 1e-4 * len(atoms)


def test_tables_of_a_tabulated_model():
    """They are made of its networks, not of its tables."""
    exact = cases.small()
    fine = fastmlip.tabulate(fastmlip.tabulate(exact, tol=10.0), tol=1e-6)
    frame = cases.STRUCTURES["crystal"]
    want, got = (cases.run(model, frame)["forces"] for model in (exact, fine))
    assert (got - want).abs().max() <= 1e-6


def test_copies_keep_tables():
    fast = fastmlip.tabulate(cases.small(dtype=F32), tol=1e-3)
    frame = cases.STRUCTURES["crystal"]
    want = cases.run(fast, frame, dtype=F32)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for other in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        cases.assert_same(cases.run(other, frame, dtype=F32), want, 1e-7)


def test_what_a_tabulated_model_refuses():
    fast = fastmlip.tabulate(cases.small(), tol=1e-3)
    with pytest.raises(RuntimeError, match="takes no state dict"):
        fast.load_state_dict(cases.small().state_dict())
    given = cases.data(fast, cases.STRUCTURES["crystal"])
    fast.requires_grad_(True)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        fast(given)
    fast.requires_grad_(False)
    hook = fast.radial_embedding.register_forward_hook(lambda module, args, out: out)
    with pytest.raises(RuntimeError, match="radial embedding"):
        fast(given)
    hook.remove()
    fast.readouts[0] = torch.nn.Identity()
    with pytest.raises(RuntimeError, match="were changed"):
        fast(given)


@pytest.mark.parametrize("name", ["density", "gaussians"])
def test_radial_functions_that_tables_are_not_made_for(name):
    with pytest.raises(ValueError, match="not made of Bessel functions"):
        fastmlip.tabulate(cases.small(name))

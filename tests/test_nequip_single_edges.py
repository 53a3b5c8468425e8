"""Gradients of single edges of accelerated NequIP models: stock's, or an error to ask for them."""

import pytest
import test_nequip_shared
import torch
from nequip.model import modify
from nequip.nn import GraphModuleMixin
from nequip_cases import outputs, relative_error
from test_nequip_shared import assert_same, make, network

import fastmlip
from fastmlip.integrations.nequip.sequential_graph_network import FastSequentialGraphNetwork

pytestmark = [pytest.mark.usefixtures("nequip_state"), pytest.mark.filterwarnings("ignore")]
frames = test_nequip_shared.frames


def edge_gradient(model, data):
    out = model(dict(data))
    vectors = out["edge_vectors"]
    return torch.autograd.grad(out["total_energy"].sum(), vectors)[0], vectors.detach()


def atom_virials(gradient, vectors, edge_index, atoms):
    """Half of r_ij (x) dE/dr_ij of every edge for each of its atoms."""
    of_edges = torch.einsum("ei,ej->eij", vectors, gradient) / 2
    virials = torch.zeros(atoms, 3, 3, dtype=vectors.dtype)
    return virials.index_add(0, edge_index[0], of_edges).index_add(0, edge_index[1], of_edges)


def virials(model, frame):
    gradient, vectors = edge_gradient(model, frame)
    return atom_virials(gradient, vectors, frame["edge_index"], len(frame["pos"]))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["bulk", "own images", "batch"])
def test_gradients_of_single_edges_and_virials_of_atoms_are_stocks(name, frozen, frames):
    frame, stock = frames[name], make().train()
    want, of_atoms = edge_gradient(stock, frame)[0], virials(stock, frame)
    fast = fastmlip.accelerate(make(), per_edge_gradients=True).train()
    assert relative_error(
        atom_virials(want, stock(dict(frame))["edge_vectors"].detach(), frame["edge_index"],
                     len(frame["pos"])).sum(0),
        -stock(dict(frame))["virial"].sum(0).detach(),
    ) < 1e-10  # fmt: skip
    fast.requires_grad_(not frozen)
    assert relative_error(edge_gradient(fast, frame)[0], want) < 1e-12
    assert relative_error(virials(fast, frame), of_atoms) < 1e-12
    assert_same(outputs(fast, frame), outputs(stock, frame))


def test_without_asking_for_them_they_are_an_error(frames):
    frame = frames["bulk"]
    fast = fastmlip.accelerate(make()).train()
    for field in ("edge_vectors", "edge_lengths", "edge_embedding"):
        out = fast(dict(frame))
        with pytest.raises(RuntimeError, match="not have been used in the graph"):
            torch.autograd.grad(out["total_energy"].sum(), out[field])
    # what is made of the vectors themselves has its gradient
    pos = frame["pos"].clone().requires_grad_()
    out = fast({**frame, "pos": pos})
    assert torch.autograd.grad(out["edge_vectors"].square().sum(), pos)[0].abs().max() > 0
    # asked for later
    assert fastmlip.accelerate(fast, per_edge_gradients=True) is fast
    assert network(fastmlip.accelerate(fast)).per_edge_gradients  # which nothing takes back
    want = edge_gradient(make().train(), frame)[0]
    assert relative_error(edge_gradient(fast, frame)[0], want) < 1e-12
    assert {row.module: row.reason for row in fastmlip.summary(fast)}[
        "FastSequentialGraphNetwork"
    ] == "per_edge_gradients"


def without_derivatives(model):
    model.model.do_derivatives = False
    return model


@pytest.mark.parametrize("given", [False, True])
def test_a_model_without_forces_has_them(given, frames):
    """With positions, and with edge vectors beside them."""
    frame, gradients = dict(frames["bulk"]), []
    for model in (without_derivatives(make()), without_derivatives(fastmlip.accelerate(make()))):
        if given:
            frame["edge_vectors"] = make()(dict(frames["bulk"]))["edge_vectors"].detach()
            frame["edge_vectors"].requires_grad_()
        else:
            frame["pos"] = frames["bulk"]["pos"].clone().requires_grad_()
        gradients.append(edge_gradient(model, frame)[0])
    assert relative_error(gradients[1], gradients[0]) < 1e-12


class Virials(GraphModuleMixin, torch.nn.Module):
    """Around or inside a model: the gradient with respect to edge vectors as a field."""

    def __init__(self, func, irreps_in):
        super().__init__()
        self.func = func
        self._init_irreps(irreps_in=irreps_in)

    def forward(self, data):
        data = self.func(data)
        energy, vectors = data["atomic_energy"].sum(), data["edge_vectors"]
        data["edge_forces"] = torch.autograd.grad(energy, vectors, create_graph=True)[0]
        return data


class Nothing(torch.nn.Module):
    def forward(self, data):
        return data


@pytest.mark.parametrize("where", ["around the network", "at its end", "a hook"])
def test_modules_inside_that_read_single_edges_get_them(where, frames):
    results = []
    for fast in (False, True):
        model, seen = make().train(), []
        row = network(model)
        if where == "around the network":
            model.model.func = Virials(row, row.irreps_in)
        elif where == "at its end":
            row.append("virials", Virials(Nothing(), row.irreps_out))
        else:
            row.bessel_encode.register_forward_hook(lambda m, args, out: seen.append(dict(out)))  # noqa: B023
        if fast:
            fastmlip.accelerate(model)
        out = model(dict(frames["bulk"]))
        if where == "a hook":
            energy, vectors = out["total_energy"].sum(), seen[-1]["edge_vectors"]
            results.append(torch.autograd.grad(energy, vectors)[0])
        else:
            results.append(out["edge_forces"].detach())
    assert relative_error(results[1], results[0]) < 1e-12


def test_pairs_are_what_forces_use(frames, monkeypatch):
    """Without this, the tests above would pass where nothing is shared any more."""
    pairs = []
    kernel = fastmlip.ops.radial_conv
    monkeypatch.setattr(
        fastmlip.ops,
        "radial_conv",
        lambda *operands: pairs.append(operands[8]) or kernel(*operands),
    )
    fast = fastmlip.accelerate(make(), self_check=False)
    outputs(fast, frames["bulk"])
    assert len(pairs) == 2 and all(pair is not None for pair in pairs)
    assert all(pair is pairs[0] for pair in pairs)
    pairs.clear()
    outputs(fastmlip.accelerate(fast, per_edge_gradients=True), frames["bulk"])
    assert len(pairs) == 2 and not any(pair is not None for pair in pairs)


def test_the_modifier_takes_it():
    model = modify(make(), [{"modifier": "enable_FastMLIP", "per_edge_gradients": True}])
    assert isinstance(network(model), FastSequentialGraphNetwork)
    assert network(model).per_edge_gradients

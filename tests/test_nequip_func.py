"""``torch.func`` in reverse mode through accelerated models without forces of their own
(``do_derivatives: false``): what stock gives, exact, frozen and tabulated, to second order."""

import warnings

import pytest
import torch
from nequip_cases import build, relative_error, structures
from torch.func import functional_call, grad, jacrev, vjp, vmap

import fastmlip

pytestmark = pytest.mark.usefixtures("nequip_state")
FORMS = ("exact", "frozen", "tabulated")
CONFIG = "tiny"


@pytest.fixture(scope="module")
def frame():
    return structures()["own images"]


@pytest.fixture(scope="module")
def stock():
    return build(CONFIG, "float64", do_derivatives=False)


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture
def tolerance(form):
    """Relative to the largest entry; the splines give forces to 1e-9, and Hessians to less."""
    return 1e-6 if form == "tabulated" else 1e-11


@pytest.fixture(scope="module")
def fast(form):
    if form == "tabulated":  # of a model with forces, for which the splines are judged
        return fastmlip.tabulate(build(CONFIG, "float64"), tol=1e-9).model.func
    model = build(CONFIG, "float64", do_derivatives=False)
    return fastmlip.accelerate(model.requires_grad_(form == "exact"))


@pytest.fixture(autouse=True)
def no_warning_of_a_slow_fallback():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*batching rule.*")
        yield


def energy(model, frame):
    return lambda pos: model({**frame, "pos": pos})["total_energy"].sum()


def close(transform, fast, stock, frame, tolerance):
    got, want = (transform(energy(model, frame)) for model in (fast, stock))
    assert relative_error(got.detach(), want.detach()) < tolerance
    return got.detach()


def test_gradients(fast, stock, frame, tolerance):
    pos = frame["pos"]
    forces = close(lambda f: grad(f)(pos), fast, stock, frame, tolerance)
    close(
        lambda f: vjp(f, pos)[1](torch.ones((), dtype=pos.dtype))[0], fast, stock, frame, tolerance
    )
    close(lambda f: jacrev(f)(pos), fast, stock, frame, tolerance)
    assert forces.abs().max() > 0.01


def test_gradients_of_atomic_energies(fast, stock, frame, tolerance):
    def of(model):
        return jacrev(lambda pos: model({**frame, "pos": pos})["atomic_energy"].flatten())

    got, want = (of(model)(frame["pos"]).detach() for model in (fast, stock))
    assert relative_error(got, want) < tolerance


def test_hessians(fast, stock, frame, tolerance):
    pos = frame["pos"]
    hessian = close(lambda f: jacrev(jacrev(f))(pos), fast, stock, frame, tolerance)
    rows = torch.eye(pos.numel(), dtype=pos.dtype).view(-1, *pos.shape)
    products = close(lambda f: vmap(vjp(grad(f), pos)[1])(rows)[0], fast, stock, frame, tolerance)
    assert relative_error(products.flatten(), hessian.flatten()) < 1e-11


def test_a_batch_of_positions(fast, frame):
    """Of each what it is alone (stock's own ``scatter_add_`` has no rule for it)."""
    batch = torch.stack([frame["pos"], frame["pos"] * 1.01])
    f = energy(fast, frame)
    for got, pos in zip(vmap(grad(f))(batch).detach(), batch, strict=True):
        assert relative_error(got, grad(f)(pos).detach()) < 1e-12
    got = vmap(jacrev(jacrev(f)))(batch).detach()[1]
    assert relative_error(got, jacrev(jacrev(f))(batch[1]).detach()) < 1e-12


def test_autograd_in_batches(fast, stock, frame, tolerance):
    """``is_grads_batched`` runs recorded graphs under vmap."""

    def hessian(model):
        pos = frame["pos"].clone().requires_grad_()
        (forces,) = torch.autograd.grad(energy(model, frame)(pos), pos, create_graph=True)
        rows = torch.eye(pos.numel(), dtype=pos.dtype).view(-1, *pos.shape)
        return torch.autograd.grad(forces, pos, rows, is_grads_batched=True)[0]

    assert relative_error(hessian(fast), hessian(stock)) < tolerance


def test_gradients_of_parameters(stock, frame):
    """Of a loss of forces; names are those of stock. Also for an ensemble of two at once."""
    fast = fastmlip.accelerate(build(CONFIG, "float64", do_derivatives=False))

    def loss(model):
        def of(parameters):
            def energy(pos):
                out = functional_call(model, parameters, ({**frame, "pos": pos},))
                return out["total_energy"].sum()

            return energy(frame["pos"]).sin() + grad(energy)(frame["pos"]).square().sum()

        return of

    parameters = {name: p.detach() for name, p in stock.named_parameters()}
    got, want = (grad(loss(model))(parameters) for model in (fast, stock))
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert relative_error(got[name], value) < 1e-10, name
    two = {name: torch.stack([p, p * 1.1]) for name, p in parameters.items()}
    both = grad(lambda two: vmap(loss(fast))(two).sum())(two)
    for name, value in want.items():
        assert relative_error(both[name][0], value) < 1e-10, name


def test_forward_mode_is_refused_by_name(fast, frame):
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jvp(energy(fast, frame), (frame["pos"],), (frame["pos"],))

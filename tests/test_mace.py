"""MACE's models, accelerated: the numbers of the host in every way it is used."""

import copy
import io
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fastmlip
from fastmlip.cli import app
from fastmlip.integrations.fingerprints import installed
from fastmlip.integrations.swap import report

pytest.importorskip(
    "mace", reason="MACE needs e3nn 0.4.4, an environment of its own: make test-mace"
)
import mace_cases as cases

F32, F64 = torch.float32, torch.float64


def both(name="residual", dtype=F64, **options):
    return cases.small(name, dtype), fastmlip.accelerate(cases.small(name, dtype), **options)


@pytest.mark.parametrize("name", list(cases.VARIANTS))
def test_energies_forces_and_stress(name):
    stock, fast = both(name)
    assert {(row.status, row.reason) for row in report(fast)} == {("swapped", "")}
    for atoms in cases.STRUCTURES.values():
        cases.assert_same(cases.run(fast, atoms), cases.run(stock, atoms), 1e-10)


@pytest.mark.parametrize("name", list(cases.VARIANTS))
def test_float32(name):
    """As near to float64 as stock is, which has errors beyond 1e-5 where atoms are close."""
    stock, fast = both(name, F32)
    for atoms in cases.STRUCTURES.values():
        exact = cases.run(cases.small(name), atoms)
        got, want = (cases.run(model, atoms, dtype=F32) for model in (fast, stock))
        for key, expected in exact.items():
            size = expected.abs().max().clamp(min=0.1)
            allowed = max(1e-5 * size, 4 * (want[key] - expected).abs().max())
            assert (got[key] - expected).abs().max() <= allowed, key


def test_batches():
    stock, fast = both()
    frames = list(cases.STRUCTURES.values())
    cases.assert_same(cases.run(fast, *frames), cases.run(stock, *frames), 1e-10)


@pytest.mark.parametrize("name", ["residual", "density", "plain first"])
def test_gradients_of_parameters(name):
    """Of a loss of energies, forces and stress, as in training."""
    found = []
    for model in both(name):
        out = model.train()(
            cases.data(model, *cases.STRUCTURES.values()), training=True, compute_stress=True
        )
        loss = sum(out[key].square().sum() for key in ("energy", "forces", "stress"))
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    for name in found[0]:
        size = found[0][name].abs().max().clamp(min=1e-3)
        assert (found[1][name] - found[0][name]).abs().max() <= 1e-9 * size, name


def test_hessians():
    stock, fast = both()
    frame = cases.STRUCTURES["molecule"]
    want, got = (
        model(cases.data(model, frame), compute_hessian=True)["hessian"] for model in (stock, fast)
    )
    assert (got - want).abs().max() <= 1e-10 * want.abs().max()


@pytest.mark.parametrize("name", ["residual", "density"])
def test_forces_of_edges_and_virials_of_atoms(name):
    """They need the gradient of each edge, which edges in pairs share."""
    stock, fast = both(name)
    names = (*cases.OUTPUTS, "edge_forces", "atomic_virials", "atomic_stresses")
    options = {"outputs": names, "compute_edge_forces": True, "compute_atomic_stresses": True}
    frame = cases.STRUCTURES["crystal"]
    cases.assert_same(cases.run(fast, frame, **options), cases.run(stock, frame, **options), 1e-10)


@pytest.mark.parametrize("name", ["shifts", "unit_shifts"])
def test_a_caller_reads_gradients_of_single_edges(name):
    found = []
    for model in both():
        given = cases.data(model, cases.STRUCTURES["crystal"])
        shifts = given[name].requires_grad_()
        options = {"compute_displacement": name == "unit_shifts"}
        energy = model(given, training=True, compute_force=False, **options)["energy"]
        found.append(torch.autograd.grad(energy.sum(), shifts)[0])
    assert (found[1] - found[0]).abs().max() <= 1e-10 * found[0].abs().max()


def test_forces_are_the_derivative_of_the_energy():
    _, fast = both("density")
    atoms = cases.STRUCTURES["crystal"].copy()
    forces, h = cases.run(fast, atoms)["forces"], 1e-4
    for atom, axis in ((0, 0), (3, 1), (11, 2)):
        energies = []
        for step in (h, -h):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            energies.append(cases.run(fast, moved)["energy"].item())
        assert abs(-(energies[0] - energies[1]) / (2 * h) - forces[atom, axis]) <= 1e-6


def test_the_check_passes():
    assert fastmlip.check(cases.small("residual", F32)).passed


def test_copies_files_and_states():
    stock, fast = both(dtype=F32)
    frame = cases.STRUCTURES["crystal"]
    want = cases.run(stock, frame, dtype=F32)
    cases.assert_same(cases.run(copy.deepcopy(fast), frame, dtype=F32), want, 1e-5)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    cases.assert_same(cases.run(loaded, frame, dtype=F32), want, 1e-5)
    assert fast.state_dict().keys() == stock.state_dict().keys()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.mul_(1.1)
    fast.load_state_dict(stock.state_dict())
    want = cases.run(stock, frame, dtype=F32)
    cases.assert_same(cases.run(fast, frame, dtype=F32), want, 1e-5)


def test_calculators():
    from mace.calculators import MACECalculator

    found = []
    for model in both():
        atoms = cases.STRUCTURES["crystal"].copy()
        atoms.calc = MACECalculator(models=[model], device="cpu", default_dtype="float64")
        found.append(atoms.get_forces())
        assert atoms.get_stress().shape == (6,) and atoms.get_potential_energy()
    assert abs(found[1] - found[0]).max() <= 1e-10 * abs(found[0]).max()


# ---------------------------------------------------------------- what runs in MACE's own forward


def test_hooks_and_adapters_run():
    stock, fast = both()
    for model in (stock, fast):
        model.products[0].linear.register_forward_hook(lambda module, args, out: 2 * out)
    frame = cases.STRUCTURES["crystal"]
    assert "hook" in report(fast)[0].reason
    cases.assert_same(cases.run(fast, frame), cases.run(stock, frame), 1e-10)


@pytest.mark.parametrize("name", ["", ".bessel_fn", ".cutoff_fn"])
def test_hooks_on_the_radial_embedding_run(name):
    found = []
    for model in both():
        part = model.get_submodule(f"radial_embedding{name}")
        part.register_forward_hook(lambda module, args, out: _half(out))
        found.append(cases.run(model, cases.STRUCTURES["crystal"]))
    cases.assert_same(found[1], found[0], 1e-10)
    unhooked = cases.run(cases.small(), cases.STRUCTURES["crystal"])
    assert (found[0]["forces"] - unhooked["forces"]).abs().max() > 1e-3


def _half(out):
    return (out[0] / 2, out[1]) if isinstance(out, tuple) else out / 2


def test_radial_functions_of_an_unknown_version(monkeypatch):
    """The fused kernel stands for them, so their code must be known."""
    from mace.modules.radial import BesselBasis

    def forward(self, x):
        return self.prefactor * torch.sin(self.bessel_weights * x) / x * 2

    monkeypatch.setattr(BesselBasis, "forward", forward)
    with pytest.raises(ValueError, match="BesselBasis of an unknown version"):
        fastmlip.accelerate(cases.small())
    fastmlip.accelerate(cases.small("gaussians"))


def test_another_cutoff_runs():
    found = []
    for model in both():
        model.radial_embedding.cutoff_fn = Linear(4.5)
        found.append(cases.run(model, cases.STRUCTURES["crystal"]))
    cases.assert_same(found[1], found[0], 1e-10)


class Linear(torch.nn.Module):
    def __init__(self, r_max):
        super().__init__()
        self.r_max, self.p = r_max, 5

    def forward(self, x):
        return (1 - x / self.r_max).clamp(min=0)


def test_couplings_and_constants_that_change_are_followed():
    """Couplings are part of a state dict."""
    stock, fast = both()
    frame = cases.STRUCTURES["crystal"]
    state = {name: -t if "U_matrix_2" in name else t for name, t in stock.state_dict().items()}
    before = cases.run(fast, frame)
    for model in (stock, fast):
        model.load_state_dict(state)
        model.interactions[1].avg_num_neighbors = 3.0
    want = cases.run(stock, frame)
    assert (want["forces"] - before["forces"]).abs().max() > 1e-3
    cases.assert_same(cases.run(fast, frame), want, 1e-10)


def test_node_attributes_that_are_no_types():
    found = []
    for model in both():
        given = cases.data(model, cases.STRUCTURES["crystal"])
        given["node_attrs"] = 0.3 * given["node_attrs"] + 0.1
        found.append(model(given)["forces"])
    assert (found[1] - found[0]).abs().max() <= 1e-12 * found[0].abs().max()


@pytest.mark.parametrize(
    "options, why",
    [
        ({"others": "RealAgnosticResidualNonLinearInteractionBlock"}, "does not accelerate"),
        ({"apply_cutoff": False}, "its cutoff multiplies"),
        ({"correlation": 4}, "its correlation is 4"),
        ({"num_interactions": 1, "use_last_readout_only": True}, "0 readouts for 1 layers"),
    ],
)
def test_what_is_not_accelerated_is_named(options, why, monkeypatch):
    monkeypatch.setitem(cases.VARIANTS, why, options)
    with pytest.raises(ValueError, match=why):
        fastmlip.accelerate(cases.small(why))


def test_weights_that_change_are_followed():
    stock, fast = both()
    frame = cases.STRUCTURES["crystal"]
    cases.run(fast, frame)
    for model in (stock, fast):
        for parameter in model.parameters():
            parameter.data.mul_(1.05)
    cases.assert_same(cases.run(fast, frame), cases.run(stock, frame), 1e-10)


def test_the_installed_version_is_known():
    rows = [row for row in installed() if row[0].startswith(("mace.", "e3nn."))]
    assert len(rows) > 20
    assert not [path for path, *_, is_known in rows if not is_known]


# ---------------------------------------------------------------- MACE's own tools


def test_a_step_of_the_trainer():
    """The same loss and the same parameters after it."""
    from mace.modules import WeightedEnergyForcesLoss
    from mace.tools.train import take_step

    steps = []
    for model in both("density"):
        batch = cases.batch(model, cases.STRUCTURES["crystal"], cases.STRUCTURES["molecule"])
        batch.energy, batch.forces = torch.tensor([1.0, -1.0]), torch.zeros_like(batch.positions)
        loss, _ = take_step(
            model.train(), WeightedEnergyForcesLoss(1.0, 10.0), batch,
            torch.optim.SGD(model.parameters(), lr=1e-3), None,
            {"forces": True, "virials": False, "stress": False}, None, torch.device("cpu"),
        )  # fmt: skip
        steps.append((loss.detach(), dict(model.named_parameters())))
    assert abs(steps[1][0] - steps[0][0]) <= 1e-10 * abs(steps[0][0])
    for name, parameter in steps[0][1].items():
        assert (steps[1][1][name] - parameter).abs().max() <= 1e-10, name


def test_torchscript_takes_the_forward_of_stock():
    """As ``mace_create_lammps_model`` scripts it."""
    from e3nn.util import jit
    from mace.calculators import LAMMPS_MACE

    stock, fast = both()
    with pytest.warns(UserWarning, match="not accelerated"):
        scripted = jit.compile(LAMMPS_MACE(fast))
    given = cases.data(stock, cases.STRUCTURES["crystal"])
    local = torch.ones(len(given["positions"]), dtype=torch.bool)
    want = LAMMPS_MACE(stock)({**given}, local)
    got = scripted({**given}, local)
    for name in ("total_energy_local", "forces"):
        assert (got[name] - want[name]).abs().max() <= 1e-10 * want[name].abs().max()
    assert (fastmlip_forces(fast, given, local) - want["forces"]).abs().max() <= 1e-10


def fastmlip_forces(model, given, local):
    from mace.calculators import LAMMPS_MACE

    return LAMMPS_MACE(model)({**given}, local)["forces"]


def test_the_example_of_the_page(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs/mace.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    torch.save(cases.small(), tmp_path / "my.model")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert report(names["calculator"].models[0])[0].status == "swapped"
    (command,) = re.findall(r"`fastmlip (check my.model)`", page)
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output

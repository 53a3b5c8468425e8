"""SevenNet's models, accelerated: the numbers of the host in every way it is used."""

import copy
import io
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from ase.build import bulk

import fastmlip
from fastmlip.integrations.swap import report
from fastmlip.testing.process import run_python

pytest.importorskip("sevenn", reason="pip install 'fastmlip[sevennet]'")
import sevennet_cases as cases
from e3nn.util import jit
from sevenn.calculator import SevenNetCalculator
from sevenn.train.loss import ForceLoss, PerAtomEnergyLoss, StressLoss
from sevenn.train.trainer import Trainer
from sevenn.util import pretrained_name_to_path
from torch_geometric.loader.dataloader import Collater

F32, F64 = torch.float32, torch.float64
TOLERANCE = {F32: 1e-5, F64: 1e-10}
STRUCTURES = {
    "crystal": cases.crystal(),
    "own images": cases.crystal(repeat=1, a=3.1)[:2],
    "molecule": cases.molecule(),
}


def both(name="typed", dtype=F64, **options):
    with cases.in_dtype(dtype):
        return cases.small(name, dtype), fastmlip.accelerate(cases.small(name, dtype), **options)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", list(cases.VARIANTS))
def test_energies_forces_and_stress(name, dtype):
    stock, fast = both(name, dtype)
    assert {(row.status, row.reason) for row in report(fast)} == {("swapped", "")}
    for atoms in STRUCTURES.values():
        want = cases.run(stock, atoms, dtype=dtype)
        cases.assert_same(cases.run(fast, atoms, dtype=dtype), want, TOLERANCE[dtype])


# of the weights that come with SevenNet; the others are in make test-all
PRETRAINED = ["7net-0", *(pytest.param(n, marks=pytest.mark.slow) for n in
              ("SevenNet-0_22May2024", "7net-l3i5", "7net-mf-0"))]  # fmt: skip


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_models(name):
    stock, fast = cases.pretrained(name), fastmlip.accelerate(cases.pretrained(name))
    for atoms in (cases.crystal(), cases.crystal(("Mg", "O", "Na", "Cl"), a=4.8)):
        want = cases.run(stock, atoms, stock.cutoff, F32)
        cases.assert_same(cases.run(fast, atoms, fast.cutoff, F32), want, 1e-5)
        energy = "inferred_total_energy"
        got = cases.run(fast, atoms, fast.cutoff, F32, [energy])[energy]
        assert abs(got - want[energy]) <= 1e-6 * abs(want[energy])


@pytest.mark.parametrize("name", ["typed", "parity, XPLOR"])
def test_edges_beyond_the_cutoff_count_nothing(name):
    """A list with a skin, for which SevenNet's own formulas would go on."""
    stock, fast = both(name)
    want = cases.run(stock, STRUCTURES["crystal"])
    cases.assert_same(cases.run(fast, STRUCTURES["crystal"], r_max=5.5), want, 1e-10)


@pytest.mark.parametrize("name", ["parity, XPLOR", "linear"])
def test_the_check_passes(name):
    report = fastmlip.check(cases.small(name, F32))
    assert report.passed
    (inversion,) = [result for result in report.results if result.name == "inversion"]
    assert inversion.status == ("skipped" if name == "linear" else "passed")


def test_the_check_of_a_checkpoint_passes():
    """SevenNet-0, whose irreps have no parities, on the command line."""
    command = [Path(sys.executable).parent / "fastmlip", "check", pretrained_name_to_path("7net-0")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout and "skipped" in done.stdout


def test_calculators():
    results = []
    for prepare in (lambda model: model, fastmlip.accelerate):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=1)
        atoms.calc = SevenNetCalculator(prepare(cases.small("typed", F32)), device="cpu")
        results.append(atoms.get_forces())
        assert atoms.get_stress().shape == (6,) and atoms.get_potential_energy()
    assert abs(results[1] - results[0]).max() <= 1e-5 * abs(results[0]).max()


# ---------------------------------------------------------------- gradients of single edges


def test_virials_of_atoms():
    """They need the gradient of each edge, which edges in pairs share."""
    stock, fast = both()
    virials = []
    for model in (stock, fast):
        model.force_output.use_atomic_virial = True
        name = "inferred_atomic_virial"
        virials.append(cases.run(model, STRUCTURES["crystal"], outputs=(*cases.OUTPUTS, name)))
    cases.assert_same(virials[1], virials[0], 1e-10)


def gradient_of_edges(model, data):
    """Of the energy, for a caller that asks for it: a model in training keeps its graph."""
    model.set_is_batch_data(False)
    with cases.in_dtype(F64):
        out = model.train()(data)
    return torch.autograd.grad(out["inferred_total_energy"], data["edge_vec"])[0]


@pytest.mark.parametrize("how", ["given", "per_edge_gradients", "no force_output"])
def test_a_caller_reads_gradients_of_single_edges(how):
    stock, fast = both()
    if how == "per_edge_gradients":
        fastmlip.accelerate(fast, per_edge_gradients=True)
    found = []
    for model in (stock, fast):
        data = cases.graph(STRUCTURES["crystal"])
        if how == "given":
            data["edge_vec"].requires_grad_()
        if how == "no force_output":
            model.delete_module_by_key("force_output")
        found.append(gradient_of_edges(model, data))
    assert (found[1] - found[0]).abs().max() <= 1e-10 * found[0].abs().max()


def test_a_gradient_of_single_edges_that_would_be_wrong_is_refused():
    _, fast = both()
    data = cases.graph(STRUCTURES["crystal"])
    with pytest.raises(RuntimeError, match=r"does not require grad|not have been used"):
        gradient_of_edges(fast, data)
    with pytest.raises(RuntimeError, match=r"does not require grad|not have been used"):
        torch.autograd.grad(data["inferred_total_energy"], data["edge_embedding"])


def test_edges_in_pairs_are_what_runs(monkeypatch):
    """Otherwise the tests above would show nothing."""
    calls = []
    pair = fastmlip.ops.edge_pair
    monkeypatch.setattr(fastmlip.ops, "edge_pair", lambda *a: calls.append(a) or pair(*a))
    _, fast = both(self_check=False)
    cases.run(fast, STRUCTURES["crystal"])
    assert len(calls) == 1


# ---------------------------------------------------------------- training


def labelled(seed):
    random = torch.Generator().manual_seed(seed)
    data = cases.graph(cases.crystal(seed=seed, repeat=1), dtype=F32)
    data["total_energy"] = torch.randn((), generator=random)
    data["force_of_atoms"] = torch.randn(data["pos"].shape, generator=random)
    data["stress"] = torch.randn((1, 6), generator=random)
    del data["data_info"]
    return data


@pytest.mark.parametrize("name", ["typed", "trained denominators", "by types"])
def test_sevennets_trainer(name):
    """Two steps on batches: parameters after them, and the gradients of the second."""
    trained = []
    for model in both(name, F32):
        losses = [
            (loss(criterion=torch.nn.MSELoss()), weight)
            for loss, weight in ((PerAtomEnergyLoss, 1.0), (ForceLoss, 1.0), (StressLoss, 0.1))
        ]
        trainer = Trainer(model, losses, torch.optim.SGD, {"lr": 1e-3}, device="cpu")
        batches = [Collater([])([labelled(2 * n), labelled(2 * n + 1)]) for n in range(2)]
        trainer.run_one_epoch(batches, is_train=True)
        trained.append({n: (p.detach(), p.grad) for n, p in model.named_parameters()})
    for key, (value, gradient) in trained[0].items():
        got, got_gradient = trained[1][key]
        assert (got - value).abs().max() <= 1e-5 * value.abs().max().clamp(min=1e-3), key
        if gradient is not None:
            size = gradient.abs().max().clamp(min=1e-3)
            assert (got_gradient - gradient).abs().max() <= 1e-4 * size, key


# ---------------------------------------------------------------- copies, files, changes


def test_state_dicts_copies_and_files():
    stock, fast = both(dtype=F32)
    assert list(stock.state_dict()) == list(fast.state_dict())
    want = cases.run(stock, STRUCTURES["crystal"], dtype=F32)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    other = fastmlip.accelerate(cases.small("typed", F32).apply(_zero), self_check=False)
    other.load_state_dict(stock.state_dict())
    for model in (copy.deepcopy(fast), torch.load(buffer, weights_only=False), other):
        cases.assert_same(cases.run(model, STRUCTURES["crystal"], dtype=F32), want, 1e-5)


def _zero(module):
    for parameter in module.parameters(recurse=False):
        parameter.data.zero_()


def test_torchscript_takes_sevennets_own_forwards():
    """As ``sevenn get_model`` deploys a model for LAMMPS."""
    stock, fast = both(dtype=F32)
    found = []
    for model in (stock, fast):
        model.delete_module_by_key("force_output")
        model.eval_type_map = False
        model.set_is_batch_data(False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            script = jit.script(copy.deepcopy(model))
        assert any("not accelerated" in str(w.message) for w in caught) == (model is fast)
        data = {
            name: value.clone()
            for name, value in cases.graph(STRUCTURES["crystal"], dtype=F32).to_dict().items()
            if isinstance(value, torch.Tensor)
        }
        data["x"] = torch.tensor([model.type_map[int(z)] for z in data["atomic_numbers"]])
        out = script(data)["inferred_total_energy"]
        found.append(torch.autograd.grad(out, data["edge_vec"])[0])
    assert type(fast).__name__ == "FastAtomGraphSequential", "the model itself is as it was"
    assert (found[1] - found[0]).abs().max() <= 1e-5 * found[0].abs().max()


@pytest.mark.parametrize("path", ["1_self_interaction_1.linear", "0_convolution", "edge_embedding"])
def test_hooks_that_come_later_run(path):
    stock, fast = both()
    seen, wants = [], []
    for model in (stock, fast):
        module = model.get_submodule(path)
        module.register_forward_hook(lambda *_: seen.append(1))
        wants.append(cases.run(model, STRUCTURES["crystal"]))
    assert len(seen) == 2
    cases.assert_same(wants[1], wants[0], 1e-10)


def test_a_module_that_is_not_known_is_said():
    class Other(torch.nn.Module):
        def forward(self, data):
            data["node_attr"] = 2 * data["node_attr"]
            return data

    stock, fast = both()
    wants = []
    for model in (stock, fast):
        items = list(model._modules.items())
        model._modules.clear()
        model._modules.update([*items[:3], ("other", Other()), *items[3:]])
        wants.append(cases.run(model, STRUCTURES["crystal"]))
    assert "other is a" in fast.remark
    cases.assert_same(wants[1], wants[0], 1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = fastmlip.accelerate(copy.deepcopy(stock))
    assert "whose effect on the data" in report(again)[0].reason


def test_parts_that_change_are_read_again():
    """Weights, denominators and Bessel coefficients are the model's at every call."""
    stock, fast = both()
    wants = []
    for model in (stock, fast):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.03)
        wants.append(cases.run(model, STRUCTURES["crystal"]))
    cases.assert_same(wants[1], wants[0], 1e-10)


def test_a_model_of_which_a_part_was_swapped_before():
    """As where a hook was in the way at first: what was swapped then is no obstacle."""
    stock, fast = cases.small(), cases.small()
    hook = fast.get_submodule("1_self_interaction_1.linear").register_forward_hook(lambda *_: None)
    with cases.in_dtype(F64), pytest.warns(UserWarning, match="a forward hook on it"):
        fastmlip.accelerate(fast)
    assert report(fast)[0].status == "kept" and report(fast)[1].status == "swapped"
    hook.remove()
    with cases.in_dtype(F64):
        fastmlip.accelerate(fast)
    assert {(row.status, row.reason) for row in report(fast)} == {("swapped", "")}
    assert len(fast.plan().layers) == 3
    want = cases.run(stock, STRUCTURES["crystal"])
    cases.assert_same(cases.run(fast, STRUCTURES["crystal"]), want, 1e-10)


def test_a_failed_self_check_leaves_the_model_as_it_was(monkeypatch):
    from fastmlip.integrations import self_check
    from fastmlip.integrations.sevennet import layer

    monkeypatch.setattr(layer, "_taken", lambda weight, shared: 1.01 * weight)
    model = cases.small()
    before = [type(module) for module in model.modules()]
    with cases.in_dtype(F64), pytest.raises(self_check.SelfCheckError):
        fastmlip.accelerate(model)
    assert [type(module) for module in model.modules()] == before


# ---------------------------------------------------------------- where NequIP is not installed


def test_without_nequip():
    """SevenNet's users have no reason to install it."""
    run_python(
        "import sys; sys.modules['nequip'] = sys.modules['allegro'] = None\n"
        f"sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        "import fastmlip, sevennet_cases as c\n"
        "model = fastmlip.accelerate(c.small('typed', c.torch.float32))\n"
        "assert fastmlip.summary(model)[0].status == 'swapped'\n"
        "assert fastmlip.check(model, only=['forces', 'energies']).passed\n"
    )


def test_models_of_hosts_that_are_not_known_are_left_alone():
    from e3nn.nn import Gate

    class EquivariantGate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            act = [torch.nn.functional.silu]
            self.gate = Gate("4x0e", act, "2x0e", act, "2x1o")

    model = torch.nn.ModuleList([EquivariantGate()])
    with pytest.raises(ValueError, match="nothing to accelerate"):
        fastmlip.accelerate(model)
    assert type(model[0].gate) is Gate
    assert "sevenn" in sys.modules

"""fastmlip.tabulate of Allegro's models: its error, derivatives, types in use, refusals."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.model import modify
from nequip_cases import R_MAX, TYPE_NAMES, outputs, rattled, relative_error, structures, to_data

import fastmlip
from fastmlip.integrations.tabulate import tabulate_

pytest.importorskip("allegro")
from allegro._compile import PAIR_ALLEGRO_TARGET
from test_allegro import MODELS, build, exported, swapped

pytestmark = pytest.mark.usefixtures("nequip_state")
DTYPES = ("float64", "float32")
ZBL = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": TYPE_NAMES}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_tables_agree_with_the_networks(name, dtype):
    stock = build(name, dtype)
    before = copy.deepcopy(stock.state_dict())
    fast = fastmlip.tabulate(stock)
    assert {"TabulatedEmbed", "InTable", "FastAllegro"} <= swapped(fast)
    for case, frame in structures().items():
        want, got = outputs(stock, frame), outputs(fast, frame)
        assert (got["forces"] - want["forces"]).abs().max() < 1e-5, case
        assert relative_error(got["atomic_energy"], want["atomic_energy"]) < 1e-5, case
        assert got["forces"].dtype == want["forces"].dtype
    for key, value in stock.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("embed", ["l2", "splines"])
def test_with_a_pair_potential(embed):
    """ZBL reads the normalised lengths, which the tables' module makes."""
    stock = build(embed, "float64", pair_potential=ZBL)
    fast = fastmlip.tabulate(stock)
    want, got = (outputs(model, structures()["batch"]) for model in (stock, fast))
    for key in ("forces", "stress", "total_energy"):
        assert relative_error(got[key], want[key]) < 1e-6, key


def test_forces_and_hessian_are_derivatives_of_the_tabulated_energy():
    fast = fastmlip.tabulate(
        build("l2 parity, 3 layers", "float64"), tol=1e-3
    )  # coarse, on purpose
    frame = structures()["own images"]
    pos = frame["pos"].clone().requires_grad_()
    fast.train()  # keeps the graph of the forces
    forces = fast({**frame, "pos": pos})["forces"]
    direction = torch.randn(pos.shape, generator=torch.manual_seed(3), dtype=torch.float64)
    rows = [torch.autograd.grad(f, pos, retain_graph=True)[0].flatten() for f in forces.flatten()]
    hessian = torch.stack(rows)
    assert relative_error(hessian, hessian.T) < 1e-9
    fast.eval()
    step = 2e-5
    up, down = (
        outputs(fast, {**frame, "pos": frame["pos"] + sign * step * direction}) for sign in (1, -1)
    )
    slope = -(forces.detach() * direction).sum()
    energy = (up["total_energy"] - down["total_energy"]).sum() / (2 * step)
    assert relative_error(energy, slope) < 1e-6
    bend = (up["forces"] - down["forces"]) / (2 * step)
    assert relative_error(bend.flatten(), hessian @ direction.flatten()) < 1e-5


def test_energy_and_force_go_to_zero_at_the_cutoff():
    fast = fastmlip.tabulate(build("l2", "float64"))

    def dimer(distance):
        atoms = Atoms("Cu2", [[0, 0, 0], [distance, 0, 0]], cell=np.eye(3) * 20, pbc=True)
        data = compute_neighborlist_(from_ase(atoms), r_max=R_MAX + 1)  # edges beyond it, too
        data[AtomicDataDict.ATOM_TYPE_KEY] = torch.tensor([0, 1])
        return outputs(fast, data)

    assert dimer(R_MAX + 0.5)["forces"].abs().max() == 0
    inside, last = dimer(R_MAX - 0.5)["forces"].abs().max(), 0.0
    for gap in (1e-6, 1e-3, 1e-2):
        size = dimer(R_MAX - gap)["forces"].abs().max()
        assert last <= size <= inside * gap  # falls at least linearly
        last = size


def test_a_tighter_tolerance_takes_a_finer_grid_and_is_reached():
    stock, frame = build("l2", "float64"), structures()["bulk"]
    errors, intervals = [], []
    for tol in (1e-3, 1e-6, 1e-9):
        fast = fastmlip.tabulate(stock, tol)
        got, want = outputs(fast, frame)["forces"], outputs(stock, frame)["forces"]
        errors.append((got - want).abs().max())
        intervals.append(int(fast.metadata["fastmlip_table_intervals"]))
        assert errors[-1] <= 10 * tol  # this frame is not among the probes
    assert intervals == sorted(set(intervals)) and errors[2] < errors[0]


def test_tables_are_for_the_types_in_use():
    """An atom of another type is an error, with neighbours; by itself it is right."""
    stock = build("l2", "float64")
    atoms = rattled(2)
    atoms.symbols[:] = [("Na", "O")[i % 2] for i in range(len(atoms))]
    fast = fastmlip.tabulate(stock, structures=[atoms])
    table = fast.get_submodule("model.func.tensor_embed")
    everything = fastmlip.tabulate(stock).get_submodule("model.func.tensor_embed")
    assert (table.splines[0].kinds, everything.splines[0].kinds) == (4, 9)
    assert table.splines[0].table.numel() < everything.splines[0].table.numel()
    data = to_data(atoms)
    data["atom_types"] = torch.arange(len(atoms)) % 2 * 2
    want, got = outputs(stock, data), outputs(fast, data)
    assert (got["forces"] - want["forces"]).abs().max() < 1e-5
    data["atom_types"] = torch.ones_like(data["atom_types"])
    with pytest.raises(RuntimeError, match=r"first_row\[0\] = -1 is out of range.*of the table"):
        outputs(fast, data)
    with fastmlip.use_backend("reference"), pytest.raises(RuntimeError, match="first_row"):
        outputs(fast, data)
    with pytest.raises(ValueError, match="are not among the model's types"):
        fastmlip.tabulate(stock, structures=[Atoms("Xe")])


def test_tables_of_many_elements_are_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr("fastmlip.integrations.allegro.tabulate.LARGEST", 1e5)
    stock = build("l2", "float64")
    with pytest.raises(ValueError, match="give structures that have the types in use alone"):
        fastmlip.tabulate(stock)


def test_what_is_refused():
    fast = fastmlip.tabulate(build("l2", "float32"))
    data = to_data(rattled())
    with pytest.raises(RuntimeError, match="takes no state dict"):
        fast.load_state_dict(fast.state_dict())
    with pytest.raises(ValueError, match="tabulated already"):
        fastmlip.tabulate(fast)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match=r"does not run under torch\.autocast"),
    ):
        outputs(fast, data)
    handle = fast.get_submodule("model.func.allegro").latents[0].register_forward_hook(print)
    with pytest.raises(RuntimeError, match="forward hook"):
        outputs(fast, data)
    handle.remove()
    fast.requires_grad_(True)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        outputs(fast, data)


class Reader(torch.nn.Module):
    """Of the scalar embedding, which a tabulated model has not."""

    irreps_in, irreps_out = {}, {}

    def forward(self, data):
        data["atomic_energy"] = data["atomic_energy"] + data["edge_embedding"].sum()
        return data


def test_what_cannot_be_tabulated_says_why_and_stays():
    stock = build("l2", "float64")
    stock.get_submodule("model.func").append("reader", Reader())
    with pytest.raises(ValueError, match=r"behind its layers is a .*Reader"):
        fastmlip.tabulate(stock)
    stock = build("l2", "float64")
    hook = lambda *_: None  # noqa: E731
    stock.get_submodule("model.func.scalar_embed_mlp").register_forward_hook(hook)
    with pytest.raises(ValueError, match="mlp: a forward hook on it"):
        fastmlip.tabulate(stock)
    fast = fastmlip.accelerate(build("l2", "float32"))
    with pytest.raises(ValueError, match="was not reached"):
        tabulate_(fast, 1e-12)
    assert "FastTensorEmbed" in swapped(fast)  # as it was
    want = outputs(build("l2", "float32"), to_data(rattled()))["forces"]
    assert relative_error(outputs(fast, to_data(rattled()))["forces"], want) < 1e-5


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_what_the_tables_were_made_of_must_stay():
    fast = fastmlip.tabulate(build("l2", "float64"))
    layers = fast.get_submodule("model.func.allegro")
    first = layers.first_layer_env_embed_projection.mlp[0]
    torch.nn.utils.parametrize.register_parametrization(first, "weight", Doubled())
    fast.requires_grad_(False)
    with pytest.raises(RuntimeError, match="modules that its tables were made of were changed"):
        outputs(fast, to_data(rattled()))


def between(model, change):
    """``change`` of the data between the embedding and the layers."""
    row = model.get_submodule("model.func")
    module = torch.nn.Module()
    module.forward = lambda data: change(data) or data
    names = list(row._modules)
    at = names.index("allegro")
    later = {name: row._modules.pop(name) for name in names[at:]}
    row._modules["between"] = module
    row._modules.update(later)
    return model


@pytest.mark.parametrize("make", [fastmlip.accelerate, fastmlip.tabulate])
def test_a_module_put_in_after_the_swap(make):
    """In front of the layers: what it does to the harmonics counts, and tensor features are an
    error, because nobody reads them."""
    data = to_data(rattled())
    energies = []
    for model in (build("l2", "float64", do_derivatives=False) for _ in "ab"):
        model = make(model) if energies else model
        model = between(model, lambda data: data["edge_attrs"].mul_(0.5) is None)
        with torch.no_grad():
            energies.append(model(dict(data))["total_energy"])
    assert relative_error(energies[1], energies[0]) < 1e-5

    def write(data):
        data["edge_features"] = torch.zeros(())

    fast = between(make(build("l2", "float64")), write)
    with pytest.raises(RuntimeError, match="writes edge_features"):
        outputs(fast, data)


@pytest.mark.parametrize("number", [-1, 3, 5])
def test_types_out_of_range_are_an_error(number):
    fast = fastmlip.tabulate(build("l2", "float64"))
    data = to_data(rattled())
    data["atom_types"] = torch.tensor([1, 0, 0, number])
    with pytest.raises((RuntimeError, IndexError), match="out of range"):
        fast.get_submodule("model.func.tensor_embed")(dict(data))


def test_structures_that_are_none():
    stock = build("l2", "float64")
    one = rattled()
    one.symbols[:] = "Na"
    fast = fastmlip.tabulate(stock, structures=one)
    assert fast.get_submodule("model.func.tensor_embed").splines[0].kinds == 1
    with pytest.raises(ValueError, match="structures: frame 1 has no atoms"):
        fastmlip.tabulate(stock, structures=[one, Atoms()])


def test_many_types_take_as_long_as_their_pairs():
    """Every pair is compared with its own rows of the tables alone."""
    names = [f"T{i}" for i in range(12)]
    stock = build("l1, one layer", "float32", type_names=names, avg_num_neighbors=9.0,
                  per_type_energy_scales=1.0, per_type_energy_shifts=0.0)  # fmt: skip
    fast = fastmlip.tabulate(stock, tol=1e-3)
    table = fast.get_submodule("model.func.tensor_embed").splines[0]
    assert table.kinds == 144
    assert table.coefficients(143).shape == (table.intervals + 5, table.columns)


def test_the_modifier_and_the_transforms_of_torch_func():
    stock = build("l2", "float64", do_derivatives=False)
    fast = modify(
        build("l2", "float64", do_derivatives=False), [{"modifier": "enable_FastMLIP_tabulated"}]
    )
    data = to_data(rattled())
    gradients = [
        torch.func.grad(lambda pos, m=m: m({**data, "pos": pos})["total_energy"].sum())(data["pos"])
        for m in (stock, fast)
    ]
    assert relative_error(*reversed(gradients)) < 1e-5


@pytest.mark.slow
def test_exports(tmp_path):
    """A compiled model gives the forces of the model in memory, for edges in any order."""
    target = PAIR_ALLEGRO_TARGET
    fast = fastmlip.tabulate(build("l2", "float64"))
    frames = [
        target["data_settings"](AtomicDataDict.batched_from_list([to_data(rattled(n))]))
        for n in (2, 1, 3)
    ]
    run = exported(copy.deepcopy(fast), target, frames[0], tmp_path / "model.nequip.pt2")
    for frame in frames:
        shuffled = torch.randperm(frame["edge_index"].shape[1], generator=torch.manual_seed(7))
        data = {**frame, "edge_index": frame["edge_index"][:, shuffled].contiguous()}
        if "edge_cell_shift" in data:
            data["edge_cell_shift"] = data["edge_cell_shift"][shuffled]
        want, got = outputs(fast, data), run(data)
        for key in set(want) & set(got):
            assert relative_error(got[key], want[key]) <= 1e-10, key

"""fastmlip.tabulate: the error it reports, forces of its own energy, the cutoff, refusals."""

import copy
import io

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase, from_dict
from nequip_cases import R_MAX, TYPE_NAMES, build, outputs, rattled, relative_error, structures

import fastmlip
from fastmlip.integrations import probes
from fastmlip.integrations.nequip.models import host_model
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.ops import _spline

pytestmark = pytest.mark.usefixtures("nequip_state")
CONFIGS = ("S", "l2 5-2-7 parity")


@pytest.fixture(scope="module", params=[(c, d) for c in CONFIGS for d in ("float64", "float32")])
def case(request):
    config, dtype = request.param
    stock = build(config, dtype)
    return stock, fastmlip.tabulate(stock)


def test_splines_agree_with_the_networks(case):
    stock, fast = case
    for name, frame in structures().items():
        want, got = outputs(stock, frame), outputs(fast, frame)
        assert (got["forces"] - want["forces"]).abs().max() < 1e-5, name
        assert relative_error(got["atomic_energy"], want["atomic_energy"]) < 1e-5
        assert got["forces"].dtype == want["forces"].dtype


def test_the_model_given_stays_as_it_is():
    stock = build("tiny", "float64")
    before = copy.deepcopy(stock.state_dict())
    fast = fastmlip.tabulate(stock)
    assert fast is not stock and all(p.requires_grad for p in stock.parameters())
    assert not [m for m in stock.modules() if type(m).__module__.startswith("fastmlip")]
    for name, value in stock.state_dict().items():
        assert torch.equal(value, before[name])
    again = fastmlip.tabulate(fastmlip.accelerate(stock))
    frame = structures()["bulk"]
    assert torch.equal(outputs(again, frame)["forces"], outputs(fast, frame)["forces"])


def test_a_tighter_tolerance_takes_a_finer_grid_and_is_reached():
    stock, frame = build("tiny", "float64"), structures()["bulk"]
    errors, intervals = [], []
    for tol in (1e-3, 1e-6, 1e-9):
        fast = fastmlip.tabulate(stock, tol)
        got, want = outputs(fast, frame)["forces"], outputs(stock, frame)["forces"]
        errors.append((got - want).abs().max())
        intervals.append(int(fast.metadata["fastmlip_table_intervals"]))
        assert float(fast.metadata["fastmlip_table_max_force_error"]) <= tol
        assert errors[-1] <= 10 * tol  # this frame is not among the probes
    assert intervals == sorted(set(intervals)) and errors[2] < errors[0]


def test_forces_and_hessian_are_derivatives_of_the_tabulated_energy():
    fast = fastmlip.tabulate(build("l2 5-2-7", "float64"), tol=1e-3)  # a coarse table on purpose
    frame = structures()["own images"]
    pos = frame["pos"].clone().requires_grad_()
    fast.train()  # keeps the graph of the forces
    forces = fast({**frame, "pos": pos})["forces"]
    direction = torch.randn(
        pos.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    hessian = torch.stack(
        [torch.autograd.grad(f, pos, retain_graph=True)[0].flatten() for f in forces.flatten()]
    )
    assert relative_error(hessian, hessian.T) < 1e-10
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
    fast = fastmlip.tabulate(build("tiny", "float64"))

    def dimer(distance):
        atoms = Atoms("Cu2", [[0, 0, 0], [distance, 0, 0]], cell=np.eye(3) * 20, pbc=True)
        data = compute_neighborlist_(from_ase(atoms), r_max=R_MAX + 1)  # edges beyond it, too
        data[AtomicDataDict.ATOM_TYPE_KEY] = torch.tensor([0, 1])
        return outputs(fast, data)

    beyond = dimer(R_MAX + 0.5)
    assert beyond["forces"].abs().max() == 0
    inside = dimer(R_MAX - 0.5)["forces"].abs().max()
    last = 0.0
    for gap in (1e-6, 1e-3, 3e-3, 1e-2):
        near = dimer(R_MAX - gap)
        size = near["forces"].abs().max()
        assert last <= size <= inside * gap  # falls at least linearly
        assert (near["total_energy"] - beyond["total_energy"]).abs() <= inside * gap**2
        last = size


def test_what_a_user_is_told():
    fast = fastmlip.tabulate(build("tiny", "float64"), tol=1e-4)
    rows = [row for row in fastmlip.summary(fast) if row.module == "FastInteractionBlock"]
    assert rows and all("intervals, max |dF|" in row.reason for row in rows)
    assert all("distances from 0.10 r_max on" in row.reason for row in rows)
    found = {key.removeprefix("fastmlip_table_"): v for key, v in fast.metadata.items()}
    assert found["probed_from"] == "0.10"
    assert 0 < float(found["max_weight_error"]) < float(found["max_slope_error"]) < 1e-2
    assert float(found["max_force_error"]) < float(found["max_force"])
    assert fast.metadata["fastmlip_table_tolerance"] == "1.0e-04"


def test_refusals():
    model = build("tiny", "float64")
    with pytest.raises(ValueError, match="training mode"):
        fastmlip.tabulate(model.train())
    model.eval()
    with pytest.raises(ValueError, match=r"tol: 1.0e-14 .* was not reached: max \|dF\| is"):
        fastmlip.tabulate(build("tiny", "float32"), tol=1e-14)
    with pytest.raises(ValueError, match="tol: expected a positive number"):
        fastmlip.tabulate(model, tol=-1.0)
    with pytest.raises(ValueError, match=r"structures: \['Xe'\] are not among"):
        fastmlip.tabulate(model, structures=[Atoms("Xe")])
    with pytest.raises(ValueError, match="at least one"):
        fastmlip.tabulate(model, structures=[])
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module"):
        fastmlip.tabulate("model.ckpt")
    with pytest.raises(ValueError, match="nothing to accelerate"):
        fastmlip.tabulate(torch.nn.Linear(2, 2).eval())
    fast = fastmlip.tabulate(model).requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be trained"):
        outputs(fast, structures()["bulk"])


def test_structures_of_the_user():
    atoms = rattled()
    atoms.set_chemical_symbols([TYPE_NAMES[i % 3] for i in range(len(atoms))])
    stock = build("tiny", "float64")
    fast = fastmlip.tabulate(stock, structures=[atoms])
    frame = structures()["bulk"]
    assert (outputs(fast, frame)["forces"] - outputs(stock, frame)["forces"]).abs().max() < 1e-4


def test_the_modifier_tabulates_in_place_and_not_in_training(monkeypatch):
    from nequip.model import modify
    from nequip.scripts import _workflow_utils

    modifier = {"modifier": "enable_FastMLIP_tabulated", "tol": 1e-4}
    model = modify(build("tiny", "float64"), [modifier])
    assert model.metadata["fastmlip_table_tolerance"] == "1.0e-04"
    monkeypatch.setattr(_workflow_utils, "_WORKFLOW_STATE", "train")
    with pytest.raises(ValueError, match="cannot be trained; name enable_FastMLIP"):
        modify(build("tiny", "float64"), [modifier])


def water(cells, seed, bond):
    """Molecules as dense as water, their O-H bonds all of one length."""
    generator = np.random.default_rng(seed)
    atoms = Atoms(cell=np.eye(3) * 3.1 * cells, pbc=True)
    one = molecule("H2O")
    one.positions *= bond / one.get_distance(0, 1)
    for place in np.ndindex(cells, cells, cells):
        copied = one.copy()
        copied.euler_rotate(*(generator.random(3) * 360))
        copied.translate(3.1 * np.array(place) + generator.normal(0, 0.15, 3))
        atoms += copied
    data = compute_neighborlist_(from_ase(atoms), r_max=6.0)
    types = [["O", "H"].index(symbol) for symbol in atoms.get_chemical_symbols()]
    data[AtomicDataDict.ATOM_TYPE_KEY] = torch.tensor(types)
    return data


@pytest.mark.parametrize("which", ["radial networks", "all weights"])
def test_the_error_that_is_reported_bounds_that_of_short_bonds(which):
    """Networks three times as steep; at r_max = 6, O-H bonds are at 0.12 r_max and beyond."""
    per_type = {"O": 1.0, "H": 1.0}
    stock = build(
        "tiny", "float64", r_max=6.0, type_names=["O", "H"], avg_num_neighbors=80.0,
        per_type_energy_scales=per_type, per_type_energy_shifts=per_type,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if which == "all weights" or "edge_mlp" in name:
                parameter.mul_(3.0)
    fast = fastmlip.tabulate(stock)
    reported = float(fast.metadata["fastmlip_table_max_force_error"])
    assert reported <= 1e-5
    for seed, bond in enumerate((0.72, 0.75, 0.8, 0.96)):
        frame = water(2, seed, bond)
        error = (outputs(fast, frame)["forces"] - outputs(stock, frame)["forces"]).abs().max()
        assert error <= reported, bond


@pytest.mark.parametrize("types", [1, 3, 50, 89])
def test_default_probes_have_all_types_and_short_distances(types):
    r_max = 4.0
    frames = list(probes._disordered(r_max, types))
    generator = torch.Generator().manual_seed(1)
    frames += [make(r_max, types, generator) for make in (probes._molecules, probes._clusters)]
    found = torch.cat([frame["atom_types"] for frame in frames]).unique()
    assert found.tolist() == list(range(types))
    assert min(torch.pdist(frame["pos"]).min() for frame in frames[:3]) < 1.5
    molecules, clusters = frames[3:]
    assert 0.399 < torch.pdist(molecules["pos"]).min() < 0.45
    pairs = min(types * (types + 1) // 2, probes.CLUSTERS)
    assert len(clusters["pos"]) <= 5 * max(pairs, 128)
    data = compute_neighborlist_(from_dict(clusters), r_max=r_max)
    dst, src = data["edge_index"]
    lengths = torch.linalg.vector_norm(data["pos"][dst] - data["pos"][src], dim=1) / r_max
    assert 0.0999 < lengths.min() < 0.11 and lengths.max() < 0.81
    number = clusters["atom_types"]
    bonded = {tuple(sorted(pair)) for pair in number[data["edge_index"]].T.tolist()}
    assert len(bonded) >= pairs  # all of them for up to 44 types
    if types == 1:
        assert 50 < len(lengths) < 1000


def test_probes_of_a_model_begin_at_a_tenth_of_the_cutoff():
    model = host_model(build("tiny", "float64"))
    found = [probes.shortest(model, frame) for frame in probes.short(model)]
    assert all(0.09 < shortest < 0.11 for shortest in found)
    lone = {"pos": torch.zeros(1, 3), "edge_index": torch.zeros(2, 0, dtype=torch.long)}
    assert probes.shortest(model, lone) == float("inf")


def test_the_error_of_a_spline_is_found_between_its_points():
    def function(x):
        return torch.stack([torch.sin(7 * x) * (1 - x) ** 3, torch.exp(-x) * (1 - x) ** 4], 1)

    found = []
    for intervals in (16, 32):
        spline = RadialSpline(RadialSpline.fit(function, intervals))
        x = torch.linspace(0, 0.999, 5000, dtype=torch.float64, requires_grad=True)
        radial, first_row = spline(x[:, None])
        values = _spline.combine(_spline.basis(radial), spline.table, first_row, 2)
        want = function(x)
        error = ((values - want).abs().max() / want.abs().max()).item()
        slopes = [
            torch.stack([torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in f.T])
            for f in (values, want)
        ]
        slope = ((slopes[0] - slopes[1]).abs().max() / slopes[1].abs().max()).item()
        found.append(RadialSpline.error(spline.coefficients(), function))
        assert found[-1] == pytest.approx((error, slope), rel=0.1)
    assert found[1][0] < found[0][0] / 30 and found[1][1] < found[0][1] / 15


# ---------------------------------------------------------------- state


def test_a_state_dict_is_not_loaded_over_tables():
    """Of two models trained differently: right forces, or none."""
    frame = structures()["bulk"]
    one, other = build("tiny", "float64"), build("tiny", "float64", seed=99)
    fast, also = fastmlip.tabulate(one), fastmlip.tabulate(other)
    before = outputs(fast, frame)
    for state in (also.state_dict(), other.state_dict(), fast.state_dict()):
        for strict in (True, False):
            with pytest.raises(RuntimeError, match="a tabulated model takes no state dict"):
                fast.load_state_dict(state, strict=strict)
    network, of_other = fast.model.func, also.model.func
    for name in ("type_embed", "bessel_encode", "layer1_convnet"):
        with pytest.raises(RuntimeError, match="a tabulated model takes no state dict"):
            getattr(network, name).load_state_dict(getattr(of_other, name).state_dict())
    assert torch.equal(outputs(fast, frame)["forces"], before["forces"])
    # its own is that of the model it was made of
    assert list(also.state_dict()) == list(other.state_dict())
    one.load_state_dict(also.state_dict())
    again = outputs(fastmlip.tabulate(one), frame)
    assert torch.equal(again["forces"], outputs(also, frame)["forces"])


@pytest.mark.parametrize("way", ["deepcopy", "torch.save"])
def test_copies_keep_their_tables(way):
    frame = structures()["bulk"]
    fast = fastmlip.tabulate(build("S", "float32"))
    if way == "deepcopy":
        copied = copy.deepcopy(fast)
    else:
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    del fast
    want, got = outputs(fastmlip.tabulate(build("S", "float32")), frame), outputs(copied, frame)
    assert torch.equal(got["forces"], want["forces"])
    assert copied.metadata["fastmlip_table_intervals"]
    with pytest.raises(RuntimeError, match="takes no state dict"):
        copied.load_state_dict(copied.state_dict())


def test_a_model_tabulated_again_is_measured_against_its_networks():
    fast = fastmlip.tabulate(build("tiny", "float64"), tol=1e-2)
    finer = fastmlip.tabulate(fast, tol=1e-8)
    once = fastmlip.tabulate(build("tiny", "float64"), tol=1e-8)
    assert finer.metadata == once.metadata


def test_a_spline_is_what_it_says():
    def function(x):
        return torch.stack([torch.sin(7 * x) * (1 - x) ** 3, torch.exp(-x) * (1 - x) ** 4], 1)

    spline = RadialSpline(RadialSpline.fit(function, 64))
    x = torch.rand(200, 1, dtype=torch.float64, requires_grad=True)

    def values(x):
        radial, first_row = spline(x)
        return _spline.combine(_spline.basis(radial), spline.table, first_row, 2)

    assert (values(x) - function(x[:, 0])).abs().max() < 1e-9
    grads = [torch.autograd.grad(f.sum(), x)[0] for f in (values(x), function(x[:, 0]))]
    assert (grads[0] - grads[1]).abs().max() < 1e-6
    ends = values(torch.tensor([[0.0], [1.0], [1.5], [1 - 1e-9]], dtype=torch.float64))
    assert (ends[0] - function(torch.zeros(1, dtype=torch.float64))).abs().max() < 1e-12
    assert ends[1:3].abs().max() == 0 and ends[3].abs().max() < 1e-12
    far = torch.tensor([[1.0], [7.0], [float("inf")]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(values(far).sum(), far)[0][:2].abs().max() == 0
    assert values(torch.tensor([[float("nan")]], dtype=torch.float64)).isnan().all()

"""What torch asks of the ZBL operators: numerical gradients, opcheck, compiled and traced graphs,
packages; and what the module promises by itself."""

import copy

import pytest
import torch
from tracing import traced

from fastmlip import nn, ops, use_backend
from fastmlip.ops.zbl import COULOMB
from fastmlip.ops.zbl import reference as zbl_reference
from fastmlip.testing import OPERATORS, assert_close
from fastmlip.testing.process import run_python

OP = OPERATORS["zbl"]
CASE = OP.cases["oxides"]
SIZES = [(5, 31), (9, 64), (2, 3)]  # nodes, edges


@pytest.fixture(autouse=True, scope="module")
def no_caches():
    """A cached graph of an older formula can hide that this one is wrong."""
    with torch.compiler.config.patch(force_disable_caches=True):
        yield


def smooth(name, nodes=3, edges=5):
    """Inputs with lengths from 1 A to 3 A, where finite differences are accurate."""
    inputs = OP.make_inputs(OP.cases[name], nodes=nodes, edges=edges)
    lengths = torch.linspace(1.0, 3.0, edges, dtype=torch.float64).requires_grad_()
    problem = OP.cases[name].problem
    return lengths, lambda r: OP.op(r, *inputs[1:], problem=problem)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", ["water", "per-type cutoffs", "p = 7.5"])
def test_gradients_are_those_of_finite_differences(name, backend):
    lengths, energy = smooth(name)
    with use_backend(backend):
        assert torch.autograd.gradcheck(energy, lengths)
        assert torch.autograd.gradgradcheck(energy, lengths)

        def hessian_product(r):
            (slope,) = torch.autograd.grad(energy(r).sin().sum(), r, create_graph=True)
            return torch.autograd.grad(slope.square().sum(), r, create_graph=True)

        assert torch.autograd.gradcheck(hessian_product, lengths, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [(5, 7), (1, 1), (4, 0)], ids=str)
def test_opcheck(sizes, weighted):
    """Schema, fake, autograd registration and the strides that the fake gives."""
    nodes, edges = sizes
    inputs = OP.make_inputs(CASE, nodes=nodes, edges=edges)
    numbers, prefactor, cutoff, p, *_ = CASE.problem.arguments(inputs)
    length = inputs.edge_length.requires_grad_()
    weight = torch.randn(edges, dtype=torch.float64, requires_grad=True) if weighted else None
    grad = torch.randn(nodes, dtype=torch.float64, requires_grad=True)
    rest = (None, cutoff, *inputs[1:], numbers, prefactor, p, 1)
    zbl, backward = torch.ops.fastmlip.zbl_cpu.default, torch.ops.fastmlip.zbl_backward_cpu.default
    for base, keep in ((None, False), (torch.randn_like(grad, requires_grad=True), True)):
        torch.library.opcheck(zbl, (length, weight, base, *rest, nodes, keep))
    for phi in (None, torch.randn(edges, dtype=torch.float64)):
        torch.library.opcheck(backward, (grad, length, weight, phi, *rest))


# ---------------------------------------------------------------- graphs


class Layer(torch.nn.Module):
    """ZBL of displacements scaled by a parameter, an energy of it, and the forces on them."""

    def __init__(self, reference=False):
        super().__init__()
        self.zbl = zbl_reference if reference else ops.zbl
        arguments = CASE.problem.arguments(OP.make_inputs(CASE))
        for name, value in zip(("numbers", "prefactor", "cutoff"), arguments, strict=False):
            self.register_buffer(name, value.clone())

    def energies(self, length, scale, edge_index, atom_types):
        rest = (edge_index, atom_types, self.numbers, self.prefactor, self.cutoff)
        return self.zbl(length * scale, *rest) * 1e-3

    def forward(self, length, scale, edge_index, atom_types):
        length = length.detach().requires_grad_()
        energies = self.energies(length, scale, edge_index, atom_types).cos()
        return energies, torch.autograd.grad(energies.sum(), length, create_graph=True)[0]


def operands(nodes, edges, dtype=torch.float64, seed=0):
    length, index, types = OP.make_inputs(CASE, dtype, nodes=nodes, edges=edges, seed=seed)
    return length + 0.5, torch.tensor(1.1, dtype=dtype, requires_grad=True), index, types


def trains(function, inputs):
    energies, forces = function(*inputs)
    loss = energies.square().sum() + (forces - 0.3).square().sum()
    return energies, forces, *torch.autograd.grad(loss, inputs[1])


def trace(inputs):
    return traced(Layer(), inputs)


def test_compiled_forward_and_backward_match():
    compiled = torch.compile(Layer().energies, fullgraph=True, dynamic=True)
    for size in SIZES:
        results = []
        for function in (compiled, Layer(True).energies):
            inputs = operands(*size)
            length = inputs[0].requires_grad_()
            out = function(length, *inputs[1:])
            results.append([out, *torch.autograd.grad(out.square().sum(), (length, inputs[1]))])
        for got, want in zip(*results, strict=True):
            assert_close(got, want, 2, str(size))


def test_a_traced_graph_holds_the_operators_and_no_sizes():
    codes = {trace(operands(*size)).code for size in SIZES}
    assert len(codes) == 1
    code = codes.pop()
    assert "fastmlip.zbl_cpu" in code and "fastmlip.zbl_backward_cpu" in code
    assert "index_add" not in code and "exp" not in code.replace("expand", "")


def test_a_force_loss_trains_through_a_compiled_graph():
    """Second derivatives inside the graph, third through its backward."""
    compiled = torch.compile(trace(operands(*SIZES[0])), dynamic=True)
    for size in SIZES:
        got, want = trains(compiled, operands(*size)), trains(Layer(True), operands(*size))
        for order, pair in enumerate(zip(got, want, strict=True)):
            assert_close(*pair, min(order + 1, 3), f"{size}, order {order}")


@pytest.mark.slow
def test_a_package_runs_with_the_library_alone(tmp_path):
    nodes, edges = torch.export.Dim("nodes"), torch.export.Dim("edges")
    sample = [t.detach() for t in operands(6, 30)]
    sizes = ({0: edges}, None, {1: edges}, {0: nodes})
    exported = torch.export.export(trace(sample), tuple(sample), dynamic_shapes=sizes)
    path = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(tmp_path / "model.pt2")
    )
    inputs = [tuple(t.detach() for t in operands(*size)) for size in ((7, 40), (3, 0), (1, 4))]
    torch.save(inputs, tmp_path / "inputs.pt")
    (library,) = (p for p in torch.ops.loaded_libraries if "_C" in p and "fastmlip" in p)
    code = """
        import sys, torch
        torch.ops.load_library(sys.argv[1])
        package = torch._inductor.aoti_load_package(sys.argv[2])
        results = [package(*inputs) for inputs in torch.load(sys.argv[3])]
        assert "fastmlip" not in sys.modules
        torch.save(results, sys.argv[4])
    """
    files = (library, path, str(tmp_path / "inputs.pt"), str(tmp_path / "results.pt"))
    run_python(code, *files)
    for values, got in zip(inputs, torch.load(files[3]), strict=True):
        for pair in zip(got, Layer(True)(*values), strict=True):
            assert_close(*pair, 1, str(values[0].shape))


# ---------------------------------------------------------------- the module

TYPES = ["oxygen", "hydrogen"]
IRREPS = {"normed_edge_lengths": "0e"}


def data(r_max=4.0):
    """Three atoms in a row, as NequIP's fields."""
    index = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]])
    vectors = torch.tensor([[1.0, 0, 0], [2.5, 0, 0], [-1.0, 0, 0], [1.5, 0, 0], [-2.5, 0, 0],
                            [-1.5, 0, 0]], dtype=torch.float64)  # fmt: skip
    lengths = vectors.norm(dim=1, keepdim=True)
    return {
        "edge_index": index, "edge_vectors": vectors, "edge_lengths": lengths,
        "normed_edge_lengths": lengths / r_max, "atom_types": torch.tensor([[0], [1], [1]]),
        "pos": torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [2.5, 0, 0]], dtype=torch.float64),
    }  # fmt: skip


def module(**more):
    kwargs = {"chemical_species": ["O", "H"], "units": "metal", "irreps_in": IRREPS, **more}
    return nn.ZBL(TYPES, **kwargs)


def energies(zbl, **more):
    return zbl({**data(), **more})["atomic_energy"]


def test_species_in_order_or_by_name_and_units():
    zbl = module()
    want = energies(zbl)
    assert want.shape == (3, 1) and want.dtype == torch.float64 and (want > 0).all()
    by_name = module(chemical_species={"hydrogen": "H", "oxygen": "O"})
    assert torch.equal(energies(by_name), want)
    real = energies(module(units="real"))
    assert torch.allclose(real, want * COULOMB["real"] / COULOMB["metal"], rtol=1e-14)
    assert "O H | p = 6" in repr(zbl)
    assert list(zbl.state_dict()) == ["atomic_numbers", "_qqr2exesquare"]


def test_it_adds_to_the_energies_it_finds_and_leaves_ghosts_out():
    want = energies(module())
    before = torch.tensor([[1.0], [2.0], [3.0]])
    total = energies(module(), atomic_energy=before)
    assert total.dtype == torch.float64 and torch.equal(total, before + want)
    local = data()
    for field in ("edge_index", "edge_vectors", "edge_lengths", "normed_edge_lengths"):
        local[field] = local[field][..., :4] if field == "edge_index" else local[field][:4]
    local["atomic_energy"] = before[:2]
    assert torch.equal(module()(local)["atomic_energy"], (before + want)[:2])


def test_a_cutoff_of_its_own():
    want = energies(module())
    assert torch.allclose(energies(module(r_max=4.0, irreps_in=None)), want, rtol=1e-14)
    partial_cutoffs = {"hydrogen": {"oxygen": 2.0}, "oxygen": 1.2}
    short = energies(module(r_max=4.0, per_edge_type_cutoff=partial_cutoffs))
    assert (short < want).all() and (short > 0).all()
    without = data()
    del without["edge_lengths"], without["normed_edge_lengths"]
    assert torch.equal(module(r_max=4.0)(without)["atomic_energy"], energies(module(r_max=4.0)))


def test_the_way_to_the_cutoff_has_its_gradient():
    """The normed lengths are functions of the lengths; a detached copy must not lose their part."""
    slopes = []
    for zbl in (module(), module(r_max=4.0)):
        lengths = data()["edge_lengths"].requires_grad_()
        fields = {"edge_lengths": lengths, "normed_edge_lengths": lengths / 4.0}
        slopes.append(torch.autograd.grad(energies(zbl, **fields).sum(), lengths)[0])
    assert torch.allclose(*slopes, rtol=1e-13)


def test_copies_and_casts():
    zbl = module()
    want = energies(zbl)
    assert torch.equal(energies(copy.deepcopy(zbl)), want)
    assert torch.allclose(energies(copy.deepcopy(zbl).float()), want, rtol=1e-6)


BAD_MODULES = {
    "too few": ({"chemical_species": ["O"]}, ValueError, "expected 2 elements.*got 1"),
    "no element": ({"chemical_species": ["O", "Hx"]}, ValueError, "'Hx' of type 'hydrogen' is not"),
    "missing": ({"chemical_species": {"oxygen": "O"}}, ValueError, "no element for type 'hydro"),
    "unknown": (
        {"chemical_species": {"oxygen": "O", "hydrogen": "H", "C": "C"}}, ValueError,
        "unknown type 'C'"),
    "a string": ({"chemical_species": "OH"}, TypeError, "chemical_species: expected a list.*'OH'"),
    "units": ({"units": "lj"}, ValueError, r"units: .*\['metal', 'real'\], got 'lj'"),
    "exponent": ({"polynomial_cutoff_p": 1}, ValueError, "polynomial_cutoff_p: .*got 1"),
    "no cutoff": ({"irreps_in": {}}, ValueError, "irreps_in: .*normed_edge_lengths.*Or give r_max"),
    "cutoffs alone": ({"per_edge_type_cutoff": {"oxygen": 2.0}}, ValueError, "expected r_max, too"),
    "negative": ({"r_max": -1.0}, ValueError, "r_max: expected a positive length, got -1.0"),
    "too long": (
        {"r_max": 4.0, "per_edge_type_cutoff": {"oxygen": 5.0}}, ValueError, "up to r_max = 4.0"),
    "unknown type": (
        {"r_max": 4.0, "per_edge_type_cutoff": {"oxygen": {"C": 2.0}}}, ValueError,
        "unknown type 'C'"),
    "energy irreps": (
        {"irreps_in": {**IRREPS, "atomic_energy": "1o"}}, ValueError, "atomic_energy must be scal"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MODULES)
def test_bad_modules(name):
    change, error, message = BAD_MODULES[name]
    with pytest.raises(error, match=message):
        module(**change)


def test_missing_fields_are_named():
    with pytest.raises(KeyError, match="edge_lengths"):
        module(r_max=4.0)({"edge_index": data()["edge_index"]})

"""What torch asks of scale_shift: numerical gradients, opcheck, graphs, packages, modes."""

from functools import partial

import pytest
import torch
from tracing import traced

from fastmlip import ops, use_backend
from fastmlip.ops.scale_shift import reference
from fastmlip.testing import OPERATORS, assert_close
from fastmlip.testing.cases.scale_shift import make_inputs
from fastmlip.testing.process import run_python

OP = OPERATORS["scale_shift"]
CASES = OP.cases
SMALL = ("per type", "one value", "one scale, shifts of types", "scales only")


@pytest.fixture(autouse=True, scope="module")
def no_caches():
    """A cached graph of an older formula can hide that this one is wrong."""
    with torch.compiler.config.patch(force_disable_caches=True):
        yield


def leaves(inputs):
    return [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]


def raw(x, types, scales, shifts, problem):
    """The operator by its name, which takes the long way."""
    values = [v if there else None for v, there in zip((scales, shifts), problem, strict=True)]
    return torch.ops.fastmlip.scale_shift_cpu(x, types, *values, False)


@pytest.mark.parametrize(
    ("backend", "function"), [("cpp", OP.op), ("reference", OP.op), ("cpp", raw)],
    ids=["cpp", "reference", "operator"],
)  # fmt: skip
@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_those_of_finite_differences(name, backend, function):
    inputs = leaves(make_inputs(CASES[name], atoms=6, ghosts=2))
    with use_backend(backend):
        call = partial(function, problem=CASES[name].problem)
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_opcheck_every_operator(name, single):
    case = CASES[name]
    dtype = torch.float32 if single else torch.float64
    x, types, scales, shifts = leaves(make_inputs(case, dtype, atoms=7, ghosts=1))
    values = [v if there else None for v, there in zip((scales, shifts), case.problem, strict=True)]
    operators, grad = torch.ops.fastmlip, torch.randn_like(x).requires_grad_()
    torch.library.opcheck(operators.scale_shift_cpu, (x, types, *values, single))
    torch.library.opcheck(operators.scale_shift_sums_cpu, (grad, x, types, 5))


# ---------------------------------------------------------------- graphs


class Energies(torch.nn.Module):
    """An energy of the positions, scaled and shifted, and its forces."""

    def __init__(self, function=ops.scale_shift):
        super().__init__()
        self.function = function

    def energies(self, pos, types, scales, shifts):
        x = pos.square().sum(1, keepdim=True).sin()
        return self.function(x, types, scales, shifts)

    def forward(self, pos, types, scales, shifts):
        pos = pos.detach().requires_grad_()
        energies = self.energies(pos, types, scales, shifts)
        total = energies.square().sum()
        return energies, torch.autograd.grad(total, pos, create_graph=True)[0]


def graph_inputs(name, atoms, dtype=torch.float32):
    inputs = make_inputs(CASES[name], dtype, atoms, ghosts=3, seed=atoms)
    return torch.randn(atoms, 3, generator=torch.Generator().manual_seed(1)).to(dtype), *inputs[1:]


def loss_gradients(function, inputs):
    operands = leaves(inputs)
    energies, forces = function(*operands)
    loss = energies.square().sum() + (forces - 0.3).square().sum()
    return [energies, forces, *torch.autograd.grad(loss, operands[2:])]


def double(inputs):
    return [t.double() if t.is_floating_point() else t for t in inputs]


INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])  # all of the compiler but its code
@pytest.mark.parametrize("name", ["per type", "one value"])
def test_compiled_forward_and_backward_match(name, backend):
    compiled = torch.compile(Energies().energies, fullgraph=True, dynamic=True, backend=backend)
    for atoms in (5, 90):
        inputs = graph_inputs(name, atoms)
        results = []
        for function, operands in (
            (compiled, leaves(inputs)), (Energies(reference).energies, leaves(double(inputs)))
        ):  # fmt: skip
            out = function(*operands)
            wanted = [operands[i] for i in (0, 2, 3)]
            results.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
        for got, want in zip(*results, strict=True):
            error = (got - want).abs().max() / want.abs().max()
            assert error < 1e-5, f"{atoms} atoms"


def trace(inputs):
    return traced(Energies(), leaves(inputs))


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("name", ["per type", "one value"])
def test_a_force_loss_trains_through_a_compiled_graph(name, backend):
    """Second derivatives inside the graph, third through its backward: as nequip-train compiles.
    float64, so that a gradient that is lost or cut cannot hide in rounding."""
    graphs = [trace(graph_inputs(name, atoms, torch.float64)) for atoms in (5, 9)]
    assert graphs[0].code == graphs[1].code, "the graph depends on the sizes it was traced with"
    assert "fastmlip.scale_shift" in graphs[0].code and "index_select" not in graphs[0].code
    compiled = torch.compile(graphs[0], dynamic=True, backend=backend)
    for atoms in (5, 64):
        inputs = graph_inputs(name, atoms, torch.float64)
        got = loss_gradients(compiled, inputs)
        want = loss_gradients(Energies(reference), inputs)
        for actual, expected in zip(got, want, strict=True):
            assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


LOAD = """
    import sys, torch
    torch.ops.load_library(sys.argv[1])
    package = torch._inductor.aoti_load_package(sys.argv[2])
    torch.save([package(*inputs) for inputs in torch.load(sys.argv[3])], sys.argv[4])
    assert "fastmlip" not in sys.modules
"""


@pytest.mark.slow  # quick tests of NequIP's export run it too
@pytest.mark.parametrize("name", ["per type", "one value"])
def test_an_exported_package_runs_with_the_library_alone(name, tmp_path):
    atoms, all_atoms = torch.export.Dim("atoms"), torch.export.Dim("all_atoms")
    sample = graph_inputs(name, 6)
    exported = torch.export.export(
        trace(sample), sample, dynamic_shapes=[{0: atoms}, {0: all_atoms}, None, None]
    )
    path = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(tmp_path / "model.pt2")
    )
    inputs = [graph_inputs(name, n) for n in (6, 1, 0, 700)]
    torch.save(inputs, tmp_path / "inputs.pt")
    (library,) = (p for p in torch.ops.loaded_libraries if "_C" in p and "fastmlip" in p)
    out = tmp_path / "out.pt"
    run_python(LOAD, library, path, str(tmp_path / "inputs.pt"), str(out))
    for operands, got in zip(inputs, torch.load(out), strict=True):
        for actual, want in zip(got, Energies(reference)(*double(operands)), strict=True):
            if want.numel():
                assert (actual - want).abs().max() <= 1e-5 * want.abs().max()


# ---------------------------------------------------------------- the short way


def test_both_ways_give_the_same_bits():
    inputs = make_inputs(CASES["per type"], torch.float32)
    results = []
    for function in (OP.op, raw):
        operands = leaves(inputs)
        out = function(*operands, CASES["per type"].problem)
        wanted = [operands[i] for i in (0, 2, 3)]
        first = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        results.append(
            [out, *first, *torch.autograd.grad(sum(d.square().sum() for d in first), wanted)]
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_modes_see_the_operator():
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    seen = []
    case = CASES["per type"]
    inputs = make_inputs(case, torch.float32)
    with Names():
        OP.op(*leaves(inputs), case.problem)
        with torch.no_grad():
            OP.op(*inputs, case.problem)
    assert seen.count("fastmlip::scale_shift_cpu") == 2
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(t) for t in inputs]
    out = OP.op(*fakes, case.problem)  # fake tensors outside of their mode
    assert type(out) is type(fakes[0]) and out.shape == inputs.x.shape
    assert out.dtype == torch.float64


def test_saved_tensors_notice_a_change_in_place():
    x, types, scales, shifts = leaves(make_inputs(CASES["per type"]))
    out = ops.scale_shift(x, types, scales, shifts.detach())
    with torch.no_grad():
        scales.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_without_the_extension_the_reference_runs():
    printed = run_python(
        """
        import warnings
        import torch

        def missing(path):
            raise OSError("not here")

        torch.ops.load_library = missing
        warnings.simplefilter("ignore")
        from fastmlip import ops, info
        from fastmlip.ops.scale_shift import reference

        assert "does not load" in info()["cpu tensors"]
        x = torch.randn(9, 1, dtype=torch.float64, requires_grad=True)
        values = [torch.randn(3, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        types = torch.arange(11) % 3
        call = lambda *operands: ops.scale_shift(operands[0], types, *operands[1:])
        assert torch.equal(call(x, *values), reference(x, types, *values))
        assert torch.autograd.gradgradcheck(call, (x, *values))
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        assert torch.equal(compiled(x, *values), reference(x, types, *values))
        print("fine")
        """
    )
    assert "fine" in printed


def test_half_gradients_reach_half_energies():
    inputs = make_inputs(CASES["per type"], torch.float32)
    x = inputs.x.bfloat16().requires_grad_()
    out = ops.scale_shift(x, *inputs[1:])
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.dtype == torch.bfloat16
    assert_close(gradient.float(), inputs.scales[inputs.types].bfloat16().float())


def test_a_tensor_that_outlived_its_transform_keeps_its_gradients():
    inputs = leaves(make_inputs(CASES["per type"]))
    x, *rest = inputs
    left = []

    def leak(x):
        left.append(2 * x)
        return left[0].sum()

    torch.func.grad(leak)(x)
    gradients = [
        torch.autograd.grad(function(y, *rest).square().sum(), [x, *rest[1:]])
        for function, y in ((ops.scale_shift, left[0]), (reference, 2 * x))
    ]
    for got, want in zip(*gradients, strict=True):
        assert_close(got, want, 1)

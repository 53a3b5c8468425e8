"""symmetric_contraction: every row against the reference, all derivatives, graphs, errors."""

from functools import partial

import pytest
import torch
from layouts import LAYOUTS
from torch.utils._python_dispatch import TorchDispatchMode
from tracing import traced

from fastmlip import nn, ops, use_backend
from fastmlip.polynomial import Polynomial
from fastmlip.testing import (
    OPERATORS,
    assert_close,
    assert_same_derivatives,
    derivatives,
    poison_empty,
)
from fastmlip.testing.process import run_python

OP = OPERATORS["symmetric_contraction"]
NAME = "unused inputs and outputs"
CASE = OP.cases[NAME]
OPS = torch.ops.fastmlip


def functions(name):
    return OP.functions(name)


@pytest.mark.parametrize(("name", "dtype"), OP.rows(torch.float32, torch.float64))
def test_all_derivatives_match_the_reference(name, dtype):
    """Up to the third, which is composed of the others."""
    op, reference = functions(name)
    with poison_empty():
        assert_same_derivatives(op, reference, OP.make_inputs(OP.cases[name], dtype), 3)


@pytest.mark.parametrize("name", ["l_max 1", NAME])
@pytest.mark.parametrize(("nodes", "ghosts"), [(0, 0), (0, 2), (1, 0), (4, 3), (5, 0), (301, 0)])
def test_any_number_of_nodes(name, nodes, ghosts):
    op, reference = functions(name)
    inputs = OP.make_inputs(OP.cases[name], nodes=nodes, ghosts=ghosts)
    with poison_empty():
        assert_same_derivatives(op, reference, inputs, 3)


@pytest.mark.parametrize("channels", [0, 1, 5, 7, 8, 9, 16, 17, 31, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_channels(channels, dtype):
    case = OP.cases["l_max 1"]._replace(channels=channels)
    op, reference = (partial(f, problem=case.problem) for f in (OP.op, OP.reference))
    with poison_empty():
        assert_same_derivatives(op, reference, OP.make_inputs(case, dtype), 2)


@pytest.mark.parametrize("name", ["l_max 1", NAME])
def test_slopes_are_those_of_differences(name):
    """Torch's own check, which knows no formula of ours."""
    x, c, types = OP.make_inputs(OP.cases[name], nodes=2)
    x, c = x[..., :2].clone().requires_grad_(), c[..., :2].clone().requires_grad_()
    op, _ = functions(name)
    assert torch.autograd.gradcheck(lambda x, c: op(x, c, types), (x, c))
    assert torch.autograd.gradgradcheck(lambda x, c: op(x, c, types), (x, c))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_third_derivatives_along_directions_of_another_size(scale):
    """Two directions are a difference of two calls, whose step fits the size of both."""
    op, reference = functions("l_max 1")
    x, c, types = OP.make_inputs(OP.cases["l_max 1"])
    h, k, g = (torch.randn(s.shape).double() for s in (x, x, op(x, c, types)))

    def third(function):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(leaf, c, types), leaf, g, create_graph=True)
        (second,) = torch.autograd.grad(first, leaf, h, create_graph=True)
        return torch.autograd.grad(second, leaf, k * scale)[0]

    assert_close(third(op), third(reference), 3)


def test_fourth_derivatives():
    op, reference = functions(NAME)
    x, c, types = OP.make_inputs(CASE, nodes=3)
    weights = torch.randn(x.shape).double()

    def fourth(function):
        leaves = x.clone().requires_grad_(), c.clone().requires_grad_()
        value = function(*leaves, types).square().sum()
        for _ in range(3):
            (value,) = torch.autograd.grad((value * weights).sum(), leaves[0], create_graph=True)
        return torch.autograd.grad((value * weights).sum(), leaves)

    for got, want in zip(fourth(op), fourth(reference), strict=True):
        assert_close(got, want, 3)


class Called(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastmlip":
            self.names.append(function.overloadpacket.__name__.removeprefix("symmetric_"))
        return function(*args, **(kwargs or {}))


def test_only_what_is_asked_is_computed():
    """Forces of a model that can be trained need no gradient of its coefficients."""
    x, c, types = OP.make_inputs(CASE)
    # a leaf always gets its gradient: torch does not say of one whether it is asked for
    x, c = x.requires_grad_() * 1, c.requires_grad_() * 1
    out = ops.symmetric_contraction(x, c, types, CASE.problem)
    with Called() as called:
        torch.autograd.grad(out.sum(), x, retain_graph=True)
    assert called.names == ["contraction_dx_cpu"]
    with Called() as called:
        torch.autograd.grad(out.sum(), c, retain_graph=True)
    assert called.names == ["contraction_dcoefficients_cpu"]
    (forces,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with Called() as called:
        torch.autograd.grad(forces.square().sum(), c)
    assert called.names == ["contraction_dcoefficients_cpu"]
    frozen = ops.symmetric_contraction(x, c.detach(), types, CASE.problem)
    with Called() as called:
        frozen.sum().backward()
    assert called.names == ["contraction_dx_cpu"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_strides(layout):
    inputs = OP.make_inputs(CASE)
    op, reference = functions(NAME)
    with poison_empty():
        assert_same_derivatives(op, reference, type(inputs)(*map(layout, inputs)), 2)


def test_nodes_have_the_same_bits_wherever_they_stand_and_whatever_the_others_are():
    case = OP.cases["l_max 1"]
    inputs = OP.make_inputs(case, torch.float32, nodes=150)
    g = torch.randn(150, case.problem.outputs, case.channels)

    def run(x, c, types, g):
        x = x.clone().requires_grad_()
        out = OP.op(x, c, types, case.problem)
        return out.detach(), *torch.autograd.grad(out, x, g)

    whole = run(*inputs, g)
    order = torch.randperm(150, generator=torch.manual_seed(2))[:77]
    some = run(inputs.x[order], inputs.coefficients, inputs.types[order], g[order])
    for a, b in zip(whole, some, strict=True):
        assert torch.equal(a[order], b)


def test_a_bad_number_stays_in_its_node_and_its_type():
    case = OP.cases["l_max 1"]
    inputs = OP.make_inputs(case, torch.float32, nodes=30)
    want = OP.op(*inputs, case.problem)
    x, c = inputs.x.clone(), inputs.coefficients.clone()
    x[5], c[2] = float("nan"), float("inf")  # no node is of type 2
    got = OP.op(x, c, inputs.types, case.problem)
    good = torch.arange(30) != 5
    assert got[5].isnan().all() and torch.equal(got[good], want[good])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_it_is_the_formula(backend):
    """x0^2 x2 c0 + x1 c1 and x2 c2, by hand."""
    problem = Polynomial(3, 2, ((0, (0, 0, 2)), (0, (1,)), (1, (2,))))
    x, c = torch.randn(4, 3, 2), torch.randn(2, 3, 2)
    types = torch.tensor([1, 0, 0, 1])
    a = c[types]
    first = x[:, 0] ** 2 * x[:, 2] * a[:, 0] + x[:, 1] * a[:, 1]
    with use_backend(backend):
        got = nn.SymmetricContraction(problem)(x, c, types)
    torch.testing.assert_close(got, torch.stack([first, x[:, 2] * a[:, 2]], 1))


def test_the_module():
    module = nn.SymmetricContraction(CASE.problem)
    assert not module.state_dict() and "10 terms" in repr(module)
    assert module.double().half().tables.dtype is torch.int64
    inputs = OP.make_inputs(CASE)
    assert torch.equal(module(*inputs), OP.op(*inputs, CASE.problem))


def test_opcheck():
    x, c, types = OP.make_inputs(CASE)
    tables, outputs, terms = CASE.problem.tables(), CASE.problem.outputs, c.shape[1]
    grad = torch.randn(len(x), outputs, x.shape[2], dtype=x.dtype)
    leaves = {n: t.requires_grad_() for n, t in (("x", x), ("c", c), ("grad", grad))}
    for along in (None, torch.randn_like(x).requires_grad_()):
        for operator, operands in (
            (OPS.symmetric_contraction_cpu, (x, along, c, types, tables, outputs)),
            (OPS.symmetric_contraction_dx_cpu, (grad, x, along, c, types, tables)),
            (OPS.symmetric_contraction_dcoefficients_cpu,
             (grad, x, along, types, tables, len(c), terms)),
        ):  # fmt: skip
            torch.library.opcheck(operator, operands)
    assert all(t.grad is None for t in leaves.values())


class Forces(torch.nn.Module):
    """Energies and forces of a layer, as a host's model makes them."""

    def __init__(self, problem):
        super().__init__()
        self.contraction = nn.SymmetricContraction(problem)

    def forward(self, x, coefficients, types):
        x = x.detach().requires_grad_()
        energies = self.contraction(x, coefficients, types).cos().sum((1, 2))
        return energies, torch.autograd.grad(energies.sum(), x, create_graph=True)[0]


def loss_gradients(function, inputs):
    x, c, types = inputs
    c = c.clone().requires_grad_()
    energies, forces = function(x, c, types)
    loss = energies.square().sum() + (forces - 0.3).square().sum()
    return [energies, forces, *torch.autograd.grad(loss, c)]


def test_a_force_loss_trains_through_a_compiled_graph():
    """Traced as NequIP traces a model, compiled for any number of nodes; caches could hide it."""
    with torch.compiler.config.patch(force_disable_caches=True):
        first = OP.make_inputs(CASE, nodes=6)
        graph = traced(
            Forces(CASE.problem), (first.x, first.coefficients.requires_grad_(), first.types)
        )
        assert "symmetric_contraction_dx" in graph.code and "index_add" not in graph.code
        compiled = torch.compile(graph, dynamic=True)
        for nodes in (6, 13, 2):
            inputs = OP.make_inputs(CASE, nodes=nodes, seed=nodes)
            got = loss_gradients(compiled, inputs)
            with use_backend("reference"):
                want = loss_gradients(Forces(CASE.problem), inputs)
            for order, (actual, expected) in enumerate(zip(got, want, strict=True)):
                assert_close(actual, expected, order, f"{nodes} nodes, order {order}")


def test_graphs_of_any_size():
    module = nn.SymmetricContraction(CASE.problem)
    compiled = torch.compile(
        lambda *operands: module(*operands).square().sum(),
        fullgraph=True, dynamic=True, backend="aot_eager",
    )  # fmt: skip
    for nodes in (13, 0, 3):
        x, c, types = OP.make_inputs(CASE, nodes=nodes)
        x.requires_grad_(), c.requires_grad_()
        got = torch.autograd.grad(compiled(x, c, types), (x, c))
        want = torch.autograd.grad(OP.reference(x, c, types, CASE.problem).square().sum(), (x, c))
        for actual, expected in zip(got, want, strict=True):
            assert_close(actual, expected, 1)


AOTI = """
    import sys, torch
    torch.ops.load_library(sys.argv[3])
    package = torch._inductor.aoti_load_package(sys.argv[1])
    saved = torch.load(sys.argv[2])
    torch.save([package(*inputs) for inputs in saved], sys.argv[2])
    assert "fastmlip" not in sys.modules
"""


def test_an_exported_package_runs_in_a_fresh_process(tmp_path):
    first = OP.make_inputs(CASE, torch.float32, nodes=6)
    graph = traced(Forces(CASE.problem), tuple(first))
    nodes = torch.export.Dim("nodes")
    program = torch.export.export(
        graph, tuple(first), dynamic_shapes=({0: nodes}, None, {0: nodes})
    )
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    inputs = [OP.make_inputs(CASE, torch.float32, nodes=n, seed=n) for n in (9, 1, 0, 200)]
    torch.save([tuple(i) for i in inputs], tmp_path / "inputs.pt")
    (library,) = (p for p in torch.ops.loaded_libraries if "_C" in p and "fastmlip" in p)
    run_python(AOTI, path, str(tmp_path / "inputs.pt"), library)
    for operands, got in zip(inputs, torch.load(tmp_path / "inputs.pt"), strict=True):
        with use_backend("reference"):
            want = Forces(CASE.problem)(*operands.to(torch.float64))
        for order, (actual, expected) in enumerate(zip(got, want, strict=True)):
            assert_close(actual, expected, order, slack=10)


def test_transforms_of_torch_func():
    inputs = OP.make_inputs(CASE)
    op, reference = functions(NAME)

    def of(function):
        def energy(x, c):
            return function(x, c, inputs.types).sin().sum()

        gradients = torch.func.grad(energy, (0, 1))
        few = inputs.x[:2], inputs.coefficients
        return *gradients(*inputs[:2]), *torch.func.jacrev(torch.func.grad(energy), (0, 1))(*few)

    for got, want in zip(of(op), of(reference), strict=True):
        assert_close(got, want, 2)


ISA = """
    import torch
    from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty
    row = OPERATORS["symmetric_contraction"]
    for name in ("l_max 1", "unused inputs and outputs", "mace small"):
        for dtype in (torch.float32, torch.float64):
            with poison_empty():
                assert_same_derivatives(
                    *row.functions(name), row.make_inputs(row.cases[name], dtype), 2
                )
    print(torch.ops.fastmlip.isa())
"""


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set(isa):
    sets = ["portable", "avx2", "avx512"]
    if sets.index(isa) > sets.index(OPS.isa()):
        pytest.skip(f"this processor does not run {isa}")
    assert run_python(ISA, FASTMLIP_ISA=isa).strip() == isa


ONES = torch.zeros(13, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(13, 4, 5).double()}, ValueError, r"x: expected shape \[N, inputs, U\]"),
        ({"x": torch.zeros(13, 5)}, ValueError, "x: expected shape .* with 5 inputs, got"),
        ({"x": torch.zeros(13, 5, 5).half()}, TypeError, "x: expected float32 or float64"),
        ({"coefficients": torch.zeros(4, 10, 5)}, TypeError, "coefficients: expected torch.float6"),
        ({"coefficients": torch.zeros(4, 9, 5).double()}, ValueError, "coefficients: .*10 terms"),
        ({"coefficients": torch.zeros(0, 10, 5).double()}, ValueError, "coefficients: expected sh"),
        ({"coefficients": torch.zeros(4, 10, 6).double()}, ValueError, "coefficients: .*5 channel"),
        ({"types": ONES.int()}, TypeError, "types: expected int64, got torch.int32"),
        ({"types": ONES[:12]}, ValueError, "types: expected at least N = 13 entries, got"),
        ({"types": ONES + 4}, RuntimeError, r"types\[0\] = 4 is out of range"),
        ({"types": ONES - 1}, RuntimeError, r"types\[0\] = -1 is out of range"),
        ({"tables": ONES}, ValueError, r"tables: expected problem.tables\(\), int64 of shape"),
        ({"types": ONES.to("meta")}, ValueError, "types: expected device cpu as x has, got meta"),
    ],
)
def test_bad_arguments(changes, error, message):
    operands = OP.arguments(OP.make_inputs(CASE), CASE) | changes
    with pytest.raises(error, match=message):
        ops.symmetric_contraction(**operands)


@pytest.mark.parametrize("value", [4, -1])
def test_the_reference_refuses_types_out_of_range(value):
    operands = OP.arguments(OP.make_inputs(CASE), CASE) | {"types": ONES + value}
    with use_backend("reference"), pytest.raises(RuntimeError, match=r"types: .*num_types"):
        ops.symmetric_contraction(**operands)


def wrong(place, value):
    tables = CASE.problem.tables()
    tables[place] = value
    return tables


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (wrong(2, 2**40), "not a table of Polynomial"),
        (wrong(0, 2**20), "not a table of Polynomial"),
        (wrong(3, 1), "not a table of Polynomial"),
        (wrong(5, 4), "term 0 is out of range"),  # its output
        (wrong(6, 0), "term 0 is out of range"),  # a first input that is not there
        (wrong(6, 6), "term 0 is out of range"),
        (wrong(5 + 4 * 4 + 2, 1), "term 4 is out of range"),  # inputs that do not ascend
        (wrong(5 + 4 * 4 + 2, 2), "term 4 does not come after"),  # the same as term 3
        (torch.cat([CASE.problem.tables()] * 2)[::2], "not a table of Polynomial"),
        (CASE.problem.tables()[:10], "not a table of Polynomial"),
    ],
)
def test_a_wrong_table_is_refused_by_the_operator(tables, message):
    x, c, types = OP.make_inputs(CASE)
    with pytest.raises(RuntimeError, match=f"tables: {message}"):
        OPS.symmetric_contraction_cpu(x, None, c, types, tables, CASE.problem.outputs)


def test_derivatives_of_a_polynomial_of_one_term():
    """x^3: 3 x^2, 6 x and 6, exactly."""
    problem = Polynomial(1, 1, ((0, (0, 0, 0)),))
    found = []
    x = torch.tensor([[[2.0]]], dtype=torch.float64, requires_grad=True)
    value = ops.symmetric_contraction(x, torch.ones_like(x.detach()), ONES[:1], problem)
    for _ in range(3):
        found.append(value.item())
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert [*found, value.item()] == [8, 12, 12, 6]
    assert derivatives(partial(OP.op, problem=problem), OP.make_inputs(
        CASE._replace(make=lambda: problem), nodes=2), 1)  # fmt: skip

"""The ZBL operator against its reference, against LAMMPS, and where it is hard: short lengths,
cutoffs, any order of edges, bad calls."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from lammps_zbl import DIMERS, DISTANCES, TABLE

from fastmlip import ops, use_backend
from fastmlip.ops.zbl import COULOMB, R_MIN, SCREENING, SCREENING_LENGTH
from fastmlip.ops.zbl import reference as zbl_reference
from fastmlip.testing import OPERATORS, assert_close, assert_same_derivatives, poison_empty
from fastmlip.testing.cases.zbl import Case, Problem
from fastmlip.testing.process import run_python

OP = OPERATORS["zbl"]
BACKENDS = ("cpp", "reference")
F64 = torch.float64


def check(case, order, **more):
    op, reference = (partial(f, problem=case.problem) for f in (OP.op, OP.reference))
    with poison_empty():
        assert_same_derivatives(op, reference, OP.make_inputs(case, **more), order)


@pytest.mark.parametrize("sorted", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OP.cases)
def test_derivatives_up_to_the_third_in_float64(name, backend, sorted):
    with use_backend(backend):
        check(OP.cases[name], 3, sorted=sorted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OP.cases)
def test_float32_lengths_lose_nothing_inside(name, backend):
    """Energies come in float64 and are those of the same lengths in float64, to 1e-14."""
    with use_backend(backend):
        check(OP.cases[name], 2, dtype=torch.float32)


@pytest.mark.parametrize("edges", [0, 1, 7, 8, 9, 255, 256, 257, 600])
@pytest.mark.parametrize("nodes", [1, 2, 90])
def test_odd_sizes(nodes, edges):
    for sorted in (True, False):
        check(OP.cases["oxides"], 2, nodes=nodes, edges=edges, sorted=sorted)


def test_no_nodes():
    check(OP.cases["oxides"], 2, nodes=0, edges=0)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_other_instruction_sets(isa):
    code = """
        import sys
        from functools import partial
        import torch
        from fastmlip.testing import OPERATORS, assert_same_derivatives
        try:
            torch.ops.fastmlip.isa()
        except RuntimeError:
            print("not here"), sys.exit()
        op = OPERATORS["zbl"]
        for case in op.cases.values():
            functions = (partial(f, problem=case.problem) for f in (op.op, op.reference))
            assert_same_derivatives(*functions, op.make_inputs(case), 3)
        print(torch.ops.fastmlip.isa())
    """
    assert run_python(code, FASTMLIP_ISA=isa).strip() in (isa, "not here")


# ---------------------------------------------------------------- LAMMPS


def dimer(units, z1, z2, lengths, cutoff=1e6, **more):
    """Energies of separate dimers, one for each length; edges in both directions."""
    count = len(lengths)
    first, second = torch.arange(count) * 2, torch.arange(count) * 2 + 1
    index = torch.stack([torch.cat([first, second]), torch.cat([second, first])])
    energy = ops.zbl(
        torch.cat([lengths, lengths]), index, torch.arange(2 * count) % 2,
        torch.tensor([z1, z2], dtype=F64), torch.tensor(COULOMB[units] / 2, dtype=F64),
        torch.full((2, 2), cutoff, dtype=F64), **more,
    )  # fmt: skip
    return energy.view(count, 2).sum(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("units", "name"), TABLE)
def test_energies_and_forces_of_lammps(units, name, backend):
    lengths = torch.tensor(DISTANCES, dtype=F64, requires_grad=True)
    with use_backend(backend):
        energy = dimer(units, *DIMERS[name], lengths)
        (slope,) = torch.autograd.grad(energy.sum(), lengths)
    want = torch.tensor(TABLE[units, name], dtype=F64)
    assert ((energy - want[:, 0]).abs() / want[:, 0]).max() < 1e-12
    assert ((-slope - want[:, 1]).abs() / want[:, 1]).max() < 1e-12


def test_the_table_spans_what_it_should():
    assert len(TABLE) == 8 and min(DISTANCES) == 0.2 and max(DISTANCES) == 3.0
    assert all(len(rows) == len(DISTANCES) for rows in TABLE.values())
    assert TABLE["metal", "H-H"][0] == (33.2823266254836, 270.1680161505977)


def test_constants_are_those_of_nature_to_their_digits():
    """CODATA 2018: e, epsilon_0, N_A, the Bohr radius; 1 cal = 4.184 J."""
    e, epsilon_0, avogadro, bohr = 1.602176634e-19, 8.8541878128e-12, 6.02214076e23, 0.529177210903
    coulomb = e**2 / (4 * math.pi * epsilon_0) * 1e10  # J A
    assert COULOMB["metal"] == pytest.approx(coulomb / e, rel=5e-8)
    assert COULOMB["real"] == pytest.approx(coulomb * avogadro / 4184, rel=5e-8)
    assert pytest.approx(0.8854 * bohr, rel=1e-4) == SCREENING_LENGTH
    assert sum(c for c, _ in SCREENING) == pytest.approx(1.0, abs=1e-12)


# ---------------------------------------------------------------- short lengths, and the cutoff


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_close_atoms_get_a_large_finite_energy_and_leave_others_alone(backend, normed):
    problem = Problem((92, 1), 5.0, normed=normed)
    length = torch.tensor([0.0, 1e-300, 1e-5, R_MIN, 0.8, 2.5], dtype=F64, requires_grad=True)
    index = torch.tensor([[0, 1, 1, 2, 3, 3], [1, 0, 2, 1, 4, 0]])
    types = torch.zeros(5, dtype=torch.int64)
    with use_backend(backend):
        energy = OP.op(length, index, types, problem=problem)
        (slope,) = torch.autograd.grad(energy.sum(), length, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), length)
    for value in (energy, slope, second):
        assert value.isfinite().all()
    assert energy[0] > 1e8 and energy[0] == energy[2], "the value at R_MIN"
    assert (slope[:3] == 0).all() and (slope[3:] < 0).all()
    alone = OP.reference(length[4:], index[:, 4:], types, problem=problem)
    assert_close(energy[3], alone[3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_energy_and_its_first_two_derivatives_end_at_the_cutoff(backend):
    below, at, above = 4 * (1 - 1e-6), 4.0, 4.0 * (1 + 1e-9)
    length = torch.tensor([below, at, above, 1e30, math.inf], dtype=F64, requires_grad=True)
    with use_backend(backend):
        energy = dimer("metal", 79, 79, length, cutoff=4.0)
        (slope,) = torch.autograd.grad(energy.sum(), length, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), length)
    for value in (energy, slope, second):
        assert (value[1:] == 0).all()
    assert abs(energy[0]) < 1e-12 and abs(slope[0]) < 1e-9 and 0 < second[0] < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_length_that_is_not_a_number_is_not_hidden(backend):
    length = torch.tensor([math.nan, 1.0], dtype=F64)
    with use_backend(backend):
        energy = dimer("metal", 1, 1, length)
    assert energy[0].isnan() and energy[1].isfinite()


def test_cutoffs_go_by_receiver_and_sender():
    problem = OP.cases["per-type cutoffs"].problem
    energies = OP.op(
        torch.full((2,), 2.5, dtype=F64), torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 1]),
        problem=problem,
    )  # fmt: skip
    assert energies[0] > 0 and energies[1] == 0, "H sees C to 3 A, C sees H to 1.5 A"


def test_an_atom_without_neighbours_has_no_energy():
    inputs = OP.make_inputs(OP.cases["water"], nodes=9, edges=4)
    lonely = [n for n in range(9) if n not in inputs.edge_index[0]]
    assert lonely and (OP.op(*inputs, problem=OP.cases["water"].problem)[lonely] == 0).all()


# ---------------------------------------------------------------- order and strides


def test_the_order_of_edges_between_nodes_changes_no_bit():
    case = OP.cases["oxides"]
    inputs = OP.make_inputs(case, nodes=70, edges=4000)
    by_node = inputs.edge_index[0].argsort(stable=True)
    regrouped = (inputs.edge_length[by_node], inputs.edge_index[:, by_node], inputs.atom_types)
    want = OP.op(*inputs, problem=case.problem)
    assert torch.equal(OP.op(*regrouped, problem=case.problem), want)


def test_strided_operands_and_int32_indices():
    case = OP.cases["oxides"]
    inputs = OP.make_inputs(case)
    want = OP.op(*inputs, problem=case.problem)
    length = torch.stack([inputs.edge_length, torch.full_like(inputs.edge_length, math.nan)], 1)
    index = inputs.edge_index.T.contiguous().T
    types = inputs.atom_types.repeat_interleave(2)[::2]
    assert not index.is_contiguous() and not types.is_contiguous()
    assert torch.equal(OP.op(length[:, 0], index, types, problem=case.problem), want)
    narrow = (inputs.edge_index.int(), inputs.atom_types.int())
    assert torch.equal(OP.op(inputs.edge_length, *narrow, problem=case.problem), want)
    leaf = length[:, 0].requires_grad_()
    grad = torch.ones(1, dtype=F64).expand(5)
    (slope,) = torch.autograd.grad(OP.op(leaf, index, types, problem=case.problem), leaf, grad)
    truth = inputs.edge_length.clone().requires_grad_()
    reference = OP.reference(truth, *inputs[1:], problem=case.problem)
    assert_close(slope, torch.autograd.grad(reference.sum(), truth)[0], 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_give_a_column(backend):
    """As NequIP has lengths and types; to the bit, with all derivatives."""
    case = OP.cases["oxides"]
    inputs = OP.make_inputs(case)
    with use_backend(backend):
        for types in (inputs.atom_types, inputs.atom_types[:, None]):
            flat, column = (
                inputs._replace(edge_length=length, atom_types=types)
                for length in (inputs.edge_length, inputs.edge_length[:, None])
            )
            pairs = zip(derivatives(case, column), derivatives(case, flat), strict=True)
            assert all(torch.equal(got, want[:, None]) for got, want in pairs)


def derivatives(case, inputs):
    """The energies and three derivatives."""
    length = inputs.edge_length.clone().requires_grad_()
    values = [OP.op(length, *inputs[1:], problem=case.problem)]
    for _ in range(3):
        values += torch.autograd.grad(values[-1].sin().sum(), length, create_graph=True)
    return values


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("column", [False, True])
def test_energies_that_it_is_added_to(column, backend):
    """As energies alone, and a sum; gradients of both, to second order."""
    case = OP.cases["oxides"]
    length, *rest = OP.make_inputs(case, nodes=5, edges=40)
    length = (length.unsqueeze(1) if column else length).requires_grad_()
    base = torch.randn(5, 1, dtype=F64)[:, slice(None) if column else 0].requires_grad_()
    numbers, prefactor, cutoff, p, *_ = case.problem.arguments(OP.make_inputs(case))
    rest = (*rest, numbers, prefactor, cutoff, p, 5)
    with use_backend(backend):
        alone, both = ops.zbl(length, *rest), ops.zbl(length, *rest, base)
        assert both.shape == base.shape
        assert_close(both, base + alone)
        grads = [
            torch.autograd.grad((e * 1e-3).sin().sum(), (length, base), create_graph=True)
            for e in (both, base + alone)
        ]
        second = [
            torch.autograd.grad(g[0].square().sum() + g[1].sum(), (length, base)) for g in grads
        ]
    for got, want in zip(grads[0], grads[1], strict=True):
        assert_close(got, want, 1)
    for got, want in zip(second[0], second[1], strict=True):
        assert_close(got, want, 2)


@pytest.mark.parametrize("name", OP.cases)
def test_what_is_kept_for_a_derivative_changes_no_bit(name):
    case = OP.cases[name]
    length, index, types = OP.make_inputs(case, nodes=6, edges=300)
    numbers, prefactor, cutoff, p, *_, normed = case.problem.arguments(
        OP.make_inputs(case, nodes=6, edges=300)
    )
    rest = (normed, cutoff, index, types, numbers, prefactor, p)
    zbl, backward = torch.ops.fastmlip.zbl_cpu, torch.ops.fastmlip.zbl_backward_cpu
    grad = torch.randn(6, dtype=F64)
    alone, nothing = zbl(length, None, None, *rest, 0, 6, False)
    energy, phi = zbl(length, None, None, *rest, 0, 6, True)
    assert nothing.numel() == 0
    assert torch.equal(energy, alone)
    kept = backward(grad, length, None, phi, *rest, 1)
    assert torch.equal(kept, backward(grad, length, None, None, *rest, 1))


# ---------------------------------------------------------------- bad calls

GOOD = {
    "edge_length": torch.full((4,), 1.5, dtype=F64),
    "edge_index": torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]]),
    "atom_types": torch.tensor([0, 1, 1]),
    "atomic_numbers": torch.tensor([8.0, 1.0], dtype=F64),
    "prefactor": torch.tensor(7.2, dtype=F64),
    "cutoff": torch.full((2, 2), 4.0, dtype=F64),
}
INDEX, LENGTH = GOOD["edge_index"], GOOD["edge_length"]
BAD = {
    "length rank": (
        {"edge_length": LENGTH.view(1, 4)}, ValueError, r"edge_length: .*\[E, 1\].*\(1, 4\)"),
    "length dtype": ({"edge_length": LENGTH.half()}, TypeError, "edge_length: .*float16"),
    "index shape": ({"edge_index": INDEX.T}, ValueError, r"edge_index: .*\[2, E = 4\].*\(4, 2\)"),
    "index dtype": ({"edge_index": INDEX.double()}, TypeError, "edge_index: .*float64"),
    "types rank": (
        {"atom_types": torch.zeros(1, 3).long()}, ValueError, r"atom_types: .*\[N, 1\].*\(1, 3\)"),
    "numbers rank": (
        {"atomic_numbers": torch.ones(2, 1)}, ValueError, r"atomic_numbers: .*\[T\].*\(2, 1\)"),
    "types dtype": ({"atom_types": torch.zeros(3)}, TypeError, "atom_types: .*float32"),
    "numbers dtype": ({"atomic_numbers": torch.tensor([8, 1])}, TypeError, "atomic_numbers: .*64"),
    "prefactor": ({"prefactor": torch.ones(2)}, ValueError, r"prefactor: .*one number.*\(2,\)"),
    "cutoff table": ({"cutoff": torch.ones(3, 3)}, ValueError, r"cutoff: .*T = 2.*\(3, 3\)"),
    "no cutoff": ({"cutoff": None}, ValueError, "cutoff: expected radii, or .* got neither"),
    "two cutoffs": ({"normed_length": LENGTH}, ValueError, "cutoff: expected radii, .* got both"),
    "cutoff of edges": ({"cutoff": LENGTH}, ValueError, r"cutoff: .*T = 2.*\(4,\)"),
    "normed": (
        {"cutoff": None, "normed_length": LENGTH[1:]}, ValueError,
        r"normed_length: expected shape \(4,\).*\(3,\)"),
    "normed column": (
        {"cutoff": None, "normed_length": LENGTH.unsqueeze(1)}, ValueError,
        r"normed_length: expected shape \(4,\).*\(4, 1\)"),
    "normed dtype": (
        {"cutoff": None, "normed_length": LENGTH.float()}, ValueError,
        "normed_length: .*float64.*float32"),
    "normed device": (
        {"cutoff": None, "normed_length": LENGTH.to("meta")}, ValueError,
        "normed_length: expected device cpu"),
    "device": ({"cutoff": GOOD["cutoff"].to("meta")}, ValueError, "cutoff: expected device cpu"),
    "gradient": (
        {"prefactor": torch.tensor(7.2, requires_grad=True)}, ValueError, "prefactor: .*detach"),
    "normed gradient": (
        {"cutoff": None, "normed_length": LENGTH.clone().requires_grad_()}, ValueError,
        "normed_length: requires a gradient"),
    "length device": (
        {"edge_length": LENGTH.to("meta")}, ValueError, "edge_index: expected device meta"),
    "p": ({"p": 1.5}, ValueError, "p: expected a number of at least 2, got 1.5"),
    "p of nothing": ({"p": math.nan}, ValueError, "p: expected a number of at least 2, got nan"),
    "receiver": (
        {"edge_index": INDEX + torch.tensor([[2], [0]])}, RuntimeError,
        r"edge_index\[0\]\[2\] = 3 .*0 <= value < 3, num_nodes"),
    "ghost receiver": ({"num_nodes": 2}, RuntimeError, r"edge_index\[0\]\[3\] = 2 .* < 2"),
    "sender": (
        {"edge_index": INDEX - torch.tensor([[0], [1]])}, RuntimeError,
        r"edge_index\[1\]\[2\] = -1 .* < 3, the length of atom_types"),
    "type": ({"atom_types": torch.tensor([0, 1, 2])}, RuntimeError, r"atom_types\[2\] = 2 .* < 2"),
    "base shape": (
        {"base": torch.zeros(3, 1, dtype=F64)}, ValueError, r"base: .*\(3,\) on cpu.*\(3, 1\)"),
    "base device": (
        {"base": torch.zeros(3, dtype=F64, device="meta")}, ValueError, "base: .*on cpu.*on meta"),
    "base dtype": ({"base": torch.zeros(3)}, TypeError, "base: expected float64, got .*float32"),
    "too many nodes": ({"num_nodes": 4}, ValueError, "num_nodes: expected 0 to N = 3, .*got 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name):
    change, error, message = BAD[name]
    ops.zbl(**GOOD)
    with pytest.raises(error, match=message):
        ops.zbl(**{**GOOD, **change})


@pytest.mark.parametrize("name", ["receiver", "sender", "type"])
def test_bad_indices_are_refused_by_the_reference_backend_too(name):
    with use_backend("reference"), pytest.raises((RuntimeError, IndexError)):
        ops.zbl(**{**GOOD, **BAD[name][0]})


def test_fourth_derivatives_are_refused_not_wrong():
    length = LENGTH.clone().requires_grad_()
    value = ops.zbl(**{**GOOD, "edge_length": length}).sum()
    for _ in range(3):
        (value,) = torch.autograd.grad(value.sum(), length, create_graph=True)
    with pytest.raises(NotImplementedError, match="beyond the order 3"):
        torch.autograd.grad(value.sum(), length)


def test_the_example_of_the_docs_page():
    page = (Path(__file__).parents[1] / "docs/operators/zbl.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    scope: dict = {}
    exec(code, scope)
    assert scope["energy"].sum().item() == pytest.approx(TABLE["metal", "Cu-Cu"][2][0], rel=1e-4)


def test_all_nodes_receive_by_default():
    case = Case(Problem((1, 8), 5.0))
    inputs = OP.make_inputs(case)
    arguments = case.problem.arguments(inputs)
    assert torch.equal(
        zbl_reference(*inputs, *arguments), OP.reference(*inputs, problem=case.problem)
    )

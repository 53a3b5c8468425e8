"""Numbers: every case against the reference, the reference against NequIP's formula."""

from functools import partial

import pytest
import torch

from fastmlip import ops, use_backend
from fastmlip.testing import (
    OPERATORS,
    assert_close,
    assert_same_derivatives,
    derivatives,
    poison_empty,
)
from fastmlip.testing.cases.scale_shift import Inputs

OP = OPERATORS["scale_shift"]
MAKE = OP.make_inputs
PER_TYPE = OP.cases["per type"]
DTYPES = (torch.float32, torch.float64)
SIZES = (0, 1, 2, 15, 64, 511, 513, 8191, 8193, 33001)


def functions(case):
    return [partial(function, problem=case.problem) for function in (OP.op, OP.reference)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OP.cases)
def test_all_derivatives_up_to_third_order_match_the_reference(name, dtype):
    case = OP.cases[name]
    op, reference = functions(case)
    inputs = MAKE(case, dtype, ghosts=3)
    with poison_empty():
        got = derivatives(op, inputs)
    assert got[0].value.dtype == torch.float64
    for actual, want in zip(got, derivatives(reference, inputs.to(torch.float64)), strict=True):
        assert_close(actual.value, want.value, actual.order, f"{name}: {actual.name}")
    assert {d.value.dtype for d in got if d.name == "d_x"} == {dtype}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("atoms", SIZES)
@pytest.mark.parametrize("name", ["per type", "one value", "120 types"])
def test_any_number_of_atoms(name, atoms, dtype):
    op, reference = functions(OP.cases[name])
    with poison_empty():
        assert_same_derivatives(op, reference, MAKE(OP.cases[name], dtype, atoms), order=2)


def test_reference_is_the_formula():
    x, types, scales, shifts = MAKE(PER_TYPE)
    want = [
        [scales[t, 0].item() * value.item() + shifts[t, 0].item()]
        for t, value in zip(types.tolist(), x, strict=True)
    ]
    assert_close(
        OP.reference(x, types, scales, shifts, (True, True)), torch.tensor(want, dtype=x.dtype)
    )


LAYOUTS = {
    "no column": {"column": False},
    "int32 types": {"index_dtype": torch.int32},
    "ghost atoms": {"ghosts": 9},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_shapes_and_dtypes(name, dtype):
    op, reference = functions(PER_TYPE)
    assert_same_derivatives(op, reference, MAKE(PER_TYPE, dtype, **LAYOUTS[name]), order=2)


def test_strides_change_nothing():
    inputs = MAKE(PER_TYPE, torch.float32)

    def every_other(t):
        return torch.stack([t, t + 1], 1).flatten(0, 1)[::2]

    strided = Inputs(*(every_other(t) for t in inputs))
    assert all(torch.equal(a, b) for a, b in zip(inputs, strided, strict=True))
    assert not strided.x.is_contiguous() and not strided.types.is_contiguous()
    op, _ = functions(PER_TYPE)
    for got, want in zip(derivatives(op, strided, 2), derivatives(op, inputs, 2), strict=True):
        assert torch.equal(got.value, want.value)
    column = op(inputs.x, inputs.types[:, None], inputs.scales, inputs.shifts)
    assert torch.equal(column, op(*inputs))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("name", OP.cases)
def test_an_energy_of_zero_gives_the_shift_to_the_bit(name, backend):
    case = OP.cases[name]
    inputs = MAKE(case, torch.float32)
    inputs.x.zero_()
    inputs.x[::2].neg_()
    with use_backend(backend):
        out = OP.op(*inputs, case.problem).flatten()
    shifts = inputs.shifts.flatten() * case.problem[1]
    assert torch.equal(out, shifts[inputs.types if case.num_shifts > 1 else 0].expand_as(out))


def test_sums_of_many_atoms_are_exact_to_rounding():
    """Against sums of whole numbers, which are exact in any order."""
    types = torch.arange(70_000) % 3
    x = (torch.arange(70_000) % 7).float()[:, None]
    scales, shifts = (torch.ones(3, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out = ops.scale_shift(x, types, scales, shifts)
    dscales, dshifts = torch.autograd.grad(out.sum(), (scales, shifts))
    for t in range(3):
        assert dscales[t] == x[types == t].double().sum()
        assert dshifts[t] == (types == t).sum()


@pytest.mark.parametrize("layout", [{}, *LAYOUTS.values()], ids=["plain", *LAYOUTS])
@pytest.mark.parametrize("name", ["per type", "one scale, shifts of types", "shifts only"])
def test_the_gradient_of_constant_scales_has_the_same_bits_with_a_graph(name, layout):
    case = OP.cases[name]
    inputs = MAKE(case, torch.float32, **layout)
    inputs.x.requires_grad_()
    first, again = (
        torch.autograd.grad(
            OP.op(*inputs, case.problem).square().sum(), inputs.x, create_graph=graph
        )[0]
        for graph in (False, True)
    )
    assert first.dtype == torch.float32 and torch.equal(first, again)


@pytest.mark.parametrize("needs", ["x", "scales", "shifts", "x shifts", "scales shifts"])
def test_only_the_gradients_asked_for(needs):
    inputs = MAKE(PER_TYPE, torch.float32)._asdict()
    for name in needs.split():
        inputs[name].requires_grad_()
    leaves = [inputs[name] for name in needs.split()]
    results = []
    for function in (OP.op, OP.reference):
        out = function(**inputs, problem=PER_TYPE.problem)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(d.square().sum() for d in first), leaves)
        results.append([*first, *second])
    for order, got, want in zip((1,) * len(leaves) + (2,) * len(leaves), *results, strict=True):
        assert_close(got, want, order)


BAD = {
    "integer x": (
        {"x": torch.ones(37, 1).long()},
        TypeError,
        "x: expected a floating dtype.*int64",
    ),
    "float types": (
        {"types": torch.zeros(37)},
        TypeError,
        "types: expected int32 or int64.*float32",
    ),
    "float32 scales": (
        {"scales": torch.ones(5, 1)},
        TypeError,
        "scales: expected float64.*float32",
    ),
    "flat shifts": (
        {"shifts": torch.ones(5).double()},
        ValueError,
        r"shifts: expected shape.*\(5,\)",
    ),
    "few types": (
        {"types": torch.zeros(9).long()},
        RuntimeError,
        "types: .*at least N = 37.*got 9",
    ),
    "unequal": ({"shifts": torch.ones(4, 1).double()}, ValueError, "shifts: expected as many"),
    "sparse x": (
        {"x": torch.ones(37, 1).to_sparse(), "scales": None, "shifts": torch.ones(1, 1).double()},
        TypeError,
        "x: expected a dense tensor, got torch.sparse_coo",
    ),
    "wide x": ({"x": torch.ones(37, 2)}, ValueError, r"x: expected shape \[N\] or \[N, 1\]"),
}


@pytest.mark.parametrize("grad", [False, True], ids=["no gradient", "gradient"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_refused(name, grad):
    changes, error, message = BAD[name]
    operands = MAKE(PER_TYPE, torch.float32)._asdict() | changes
    if operands["x"].is_floating_point():
        operands["x"].requires_grad_(grad)
    with pytest.raises(error, match=message):
        OP.op(**operands, problem=PER_TYPE.problem)


@pytest.mark.parametrize("grad", [False, True], ids=["no gradient", "gradient"])
@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("at", [0, 600, 40_002])
def test_a_type_out_of_range_is_refused_by_its_position(at, dtype, bad, grad):
    inputs = MAKE(PER_TYPE, torch.float32, atoms=40_003, ghosts=1, index_dtype=dtype)
    inputs.x.requires_grad_(grad)
    inputs.types[at] = bad
    message = rf"types\[{at}\] = {bad} .*0 <= value < 5"
    with pytest.raises(RuntimeError, match=message):
        OP.op(*inputs, PER_TYPE.problem)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastmlip.scale_shift_sums_cpu(inputs.x, inputs.x, inputs.types, 5)
    inputs.types[at] = 0
    inputs.types[-1] = bad  # of a ghost: never read
    assert OP.op(*inputs, PER_TYPE.problem).isfinite().all()


def test_half_energies_are_taken():
    inputs = MAKE(PER_TYPE, torch.float32)
    half = inputs._replace(x=inputs.x.bfloat16())
    assert_close(functions(PER_TYPE)[0](*half), functions(PER_TYPE)[1](*half))


@pytest.mark.parametrize("column", [True, False], ids=["column", "flat"])
@pytest.mark.parametrize("atoms", [0, 37, 40_003])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OP.cases)
def test_constants_leave_the_graph_to_torch(name, dtype, atoms, column):
    case = OP.cases[name]
    index = torch.int32 if column else torch.int64
    inputs = MAKE(case, dtype, atoms, ghosts=3, index_dtype=index, column=column)
    x = torch.stack([inputs.x, inputs.x])[1].requires_grad_()  # which begins inside its memory
    with poison_empty():
        out = OP.op(x, *inputs[1:], case.problem)
        assert "Backward0" in out.grad_fn.name()  # a node of torch's own
        grad = torch.randn_like(out, requires_grad=True)
        (dx,) = torch.autograd.grad(out, x, grad, create_graph=True)
        (dgrad,) = torch.autograd.grad(dx, grad, x.detach())
    scales = torch.ones_like(inputs.scales) if not case.problem[0] else inputs.scales
    factor = scales.expand(case.num_types, 1)[inputs.types[:atoms].long()].reshape(x.shape)
    assert_close(out, OP.reference(*inputs, case.problem))
    assert dx.dtype == dtype and torch.equal(dx, (grad * factor).to(dtype))
    assert_close(dgrad, factor * x.detach(), 2)


@pytest.mark.parametrize("grad", [False, True], ids=["no gradient", "gradient"])
def test_one_value_reads_no_types(grad):
    inputs = MAKE(OP.cases["one value"], torch.float32)
    x, none = inputs.x.requires_grad_(grad), torch.zeros(0, dtype=torch.int64)
    assert_close(ops.scale_shift(x, none, *inputs[2:]), inputs.scales * inputs.x + inputs.shifts)


def test_a_change_of_constants_after_a_call_does_not_reach_its_gradient():
    inputs = MAKE(PER_TYPE)
    x = inputs.x.requires_grad_()
    want = inputs.scales[inputs.types]
    out = ops.scale_shift(x, *inputs[1:])
    inputs.scales.mul_(2)
    inputs.types.zero_()
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], want)


@pytest.mark.parametrize("changed", ["x", "scales", "shifts"])
def test_lazy_signs_are_read_as_what_they_mean(changed):
    inputs = MAKE(PER_TYPE)
    want = OP.op(*inputs, PER_TYPE.problem)
    lazy = inputs._replace(**{changed: torch._neg_view(-getattr(inputs, changed))})
    out = OP.op(*lazy._replace(x=lazy.x.requires_grad_()), PER_TYPE.problem)
    assert_close(out, want)
    assert_close(torch.autograd.grad(out.sum(), lazy.x)[0], inputs.scales[inputs.types], 1)

"""gate: every row of the table against the reference, and the module against e3nn's."""

from functools import partial

import e3nn.nn
import pytest
import torch

from fastmlip import nn, ops, use_backend
from fastmlip.ops.gate import make_tables
from fastmlip.testing import OPERATORS, assert_close, derivatives, poison_empty
from fastmlip.testing.process import run_python

OP = OPERATORS["gate"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OP.cases)
def test_all_derivatives_match_the_reference(name, dtype):
    case = OP.cases[name]
    inputs = OP.make_inputs(case, torch.float32)
    with poison_empty():
        got = derivatives(partial(OP.op, problem=case.problem), inputs.to(dtype), 2)
    want = derivatives(partial(OP.reference, problem=case.problem), inputs.to(torch.float64), 2)
    for one, other in zip(got, want, strict=True):
        assert one.value.dtype == dtype
        assert_close(one.value, other.value, one.order + 1, f"{name}: {one.name}")


@pytest.mark.parametrize("name", OP.cases)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_module_is_e3nns(name, backend):
    host, fast = e3nn.nn.Gate(*OP.cases[name]), nn.Gate(*OP.cases[name])
    assert (fast.irreps_in, fast.irreps_out) == (host.irreps_in, host.irreps_out)
    x = torch.randn(3, 5, host.irreps_in.dim, dtype=torch.float64)
    with use_backend(backend):
        assert_close(fast(x), host.double()(x), 1)
        assert fast(x[:, :0]).shape == host(x[:, :0]).shape


def test_small_and_large_numbers():
    """Where a formula for an activation loses digits, or its exponential overflows."""
    segments = OP.cases["no scalars"].problem
    segment = segments[0]._replace(gate=0, start=0, mul=1, dim=0, factor=1.0)
    for dtype, tolerance in ((torch.float32, 3e-7), (torch.float64, 3e-15)):
        x = torch.logspace(-8, 3, 400, dtype=dtype)
        x = torch.cat([x, -x, torch.zeros(1, dtype=dtype)])[:, None]
        for activation in ("tanh", "silu"):
            one = (segment._replace(activation=activation),)
            want = (torch.tanh if activation == "tanh" else torch.nn.functional.silu)(x.double())
            error = (ops.gate(x, one) - want).abs() / want.abs().clamp_min(1e-30)
            error[x < -15] = 0  # silu goes to zero there, from numbers that are not normal
            assert error.max() <= tolerance, f"{activation} {dtype}: {error.max()}"


EXTREMES = """
    import torch
    from fastmlip import ops
    from fastmlip.ops.gate import ACTIVATIONS, Segment

    def three(function, x):
        x = x.detach().requires_grad_()
        value = function(x)
        (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        return value.detach(), first.detach(), second

    for dtype, around in ((torch.float32, 88.0), (torch.float64, 709.0)):
        info = torch.finfo(dtype)
        powers = torch.logspace(1, torch.tensor(info.max).log10() - 0.01, 300, dtype=torch.float64)
        x = torch.cat([powers, around + torch.linspace(-3, 3, 301)]).to(dtype)
        rest = [float("inf"), info.max, info.tiny, info.tiny / 8, 0.0, float("nan")]
        x = torch.cat([x, torch.tensor(rest, dtype=dtype)])
        x = torch.cat([x, -x, x / 2, -x / 2])[:, None]
        for activation in ("silu", "tanh"):
            segments = (Segment(0, 0, 0, 1, 0, activation, 1.0),)
            got = three(lambda x: ops.gate(x, segments), x)
            want = three(ACTIVATIONS[activation], x)
            for order, (one, other) in enumerate(zip(got, want, strict=True)):
                atol = 100 * info.eps if order or activation == "tanh" else 4 * info.tiny
                torch.testing.assert_close(
                    one, other, rtol=40 * info.eps, atol=atol, equal_nan=True,
                    msg=lambda text: f"{activation} {dtype} derivative {order}: {text}",
                )
    print(torch.ops.fastmlip.isa())
"""


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_numbers_of_any_size_are_those_of_torch(isa):
    """Values and two derivatives, to infinity and NaN: a diverging model must not look sound."""
    sets = ["portable", "avx2", "avx512"]
    if sets.index(isa) > sets.index(torch.ops.fastmlip.isa()):
        pytest.skip(f"this processor does not run {isa}")
    assert run_python(EXTREMES, FASTMLIP_ISA=isa).strip() == isa


def test_the_module_takes_other_dtypes():
    case = OP.cases["nequip-M"]
    x = OP.make_inputs(case).x.to(torch.bfloat16)
    module = nn.Gate(*case)
    assert torch.equal(module(x), OP.reference(x, case.problem))


@pytest.mark.parametrize("name", OP.cases)
def test_higher_derivatives_are_those_of_the_reference(name):
    """Up to the fourth: a loss of the Hessian, and its gradient, need the third."""
    case = OP.cases[name]
    (x,) = OP.make_inputs(case, nodes=3)
    weights = torch.randn_like(x)

    def derivatives_of(function):
        leaf = x.clone().requires_grad_()
        value, found = function(leaf, case.problem).square().sum(), []
        for _ in range(4):
            (value,) = torch.autograd.grad((value * weights).sum(), leaf, create_graph=True)
            found.append(value.detach())
        return found

    for got, want in zip(derivatives_of(OP.op), derivatives_of(OP.reference), strict=True):
        assert_close(got, want, 2)


@pytest.mark.parametrize("name", ["both parities", "scalars only"])
def test_opcheck_and_graphs(name):
    case = OP.cases[name]
    x = OP.make_inputs(case).x.requires_grad_()
    segments = case.problem
    tables, columns = make_tables(segments), OP.op(x, case.problem).shape[1]
    grad = torch.randn(len(x), columns, dtype=x.dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.fastmlip.gate_cpu, (x, tables, columns))
    torch.library.opcheck(torch.ops.fastmlip.gate_backward_cpu, (grad, x, tables))
    compiled = torch.compile(
        lambda x: ops.gate(x, segments, tables).square().sum(),
        fullgraph=True, dynamic=True, backend="aot_eager",
    )  # fmt: skip
    for nodes in (19, 0, 3):
        (x,) = OP.make_inputs(case, nodes=nodes)
        x.requires_grad_()
        (got,) = torch.autograd.grad(compiled(x), x)
        (want,) = torch.autograd.grad(OP.reference(x, case.problem).square().sum(), x)
        assert_close(got, want, 1)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 4), ValueError, r"x: expected shape \[N, 14\], got \(2, 4\)"),
        (torch.zeros(14), ValueError, "x: expected shape"),
        (torch.zeros(2, 14, dtype=torch.float16), TypeError, "x: expected float32 or float64"),
    ],
)
def test_bad_arguments(x, error, message):
    with pytest.raises(error, match=message):
        OP.op(x, OP.cases["identity"].problem)


def test_an_activation_without_kernel_is_named():
    with pytest.raises(ValueError, match="activation relu: expected silu, tanh or None"):
        nn.Gate("3x0e", [torch.nn.functional.relu], "", [], "")

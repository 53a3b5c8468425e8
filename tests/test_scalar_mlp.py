"""scalar_mlp: rows of the table against the reference, sizes, strides, graphs, what is kept."""

from functools import partial

import pytest
import torch

from fastmlip import ops, use_backend
from fastmlip.nn import ScalarMLP
from fastmlip.ops.scalar_mlp import reference
from fastmlip.testing import OPERATORS, assert_close, derivatives, poison_empty

OP = OPERATORS["scalar_mlp"]
CASE = OP.cases["odd"]


def agree(case, inputs, dtype, order, name):
    with poison_empty():
        got = derivatives(partial(OP.op, problem=case), inputs.to(dtype), order)
    want = derivatives(partial(OP.reference, problem=case), inputs.to(torch.float64), order)
    for one, other in zip(got, want, strict=True):
        assert one.value.dtype == dtype
        assert_close(one.value, other.value, one.order, f"{name}: {one.name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OP.cases)
def test_all_derivatives_match_the_reference(name, dtype):
    case = OP.cases[name]
    agree(case, OP.make_inputs(case, torch.float32), dtype, 3, name)


@pytest.mark.parametrize("edges", [0, 1, 2, 63, 64, 65, 129, 1000])
def test_sizes(edges):
    agree(CASE, OP.make_inputs(CASE, edges=edges), torch.float64, 2, f"{edges} rows")


@pytest.mark.parametrize("width", [1, 8, 17, 64, 128, 448])
@pytest.mark.parametrize("hidden", [0, 1, 4])
def test_widths(width, hidden):
    case = CASE._replace(widths=(9, *[width] * hidden, width), columns2=0, split=width // 2)
    agree(case, OP.make_inputs(case, torch.float32, edges=13), torch.float32, 2, f"{case.widths}")


def results_and_gradients(x, x2, weights):
    return derivatives(partial(OP.op, problem=CASE), (x, weights, x2), 2)


def test_rows_of_larger_tensors_are_read_where_they_lie():
    x, weights, x2 = OP.make_inputs(CASE)
    want = results_and_gradients(x, x2, weights)
    wide = torch.randn(300, 40, dtype=x.dtype)
    wide[::2, 3:15], wide[::2, 20:25] = x, x2
    within = wide[::2, 3:15], wide[::2, 20:25]
    across = x.t().contiguous().t(), x2.t().contiguous().t()
    for one, other in (within, across):
        strange = weights.repeat(2, 1).t().contiguous().t()[1]
        for got, truth in zip(results_and_gradients(one, other, strange), want, strict=True):
            assert torch.equal(got.value, truth.value), got.name
    row = x[:1].expand(150, -1), x2[:1].expand(150, -1)
    got = ops.scalar_mlp(row[0], weights, CASE.widths, row[1])
    assert torch.equal(got, ops.scalar_mlp(x, weights, CASE.widths, x2)[:1].expand_as(got))

    # forward and backward alone: torch's own autograd makes no copy either
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        out, out2 = ops.scalar_mlp(
            within[0].requires_grad_(), weights, CASE.widths, within[1].requires_grad_(), 4
        )
        grads = torch.randn(150, 11, dtype=x.dtype)
        torch.autograd.grad((out, out2), within, (grads[:, 1:5], grads[:, 6:11]))
    copies = {"aten::copy_", "aten::contiguous", "aten::cat", "aten::clone"}
    assert not copies & {event.key for event in seen.key_averages()}


def test_opcheck():
    inputs = OP.make_inputs(CASE)
    x, weights, x2 = (t.requires_grad_() for t in inputs)
    operators, rest = torch.ops.fastmlip, (list(CASE.widths), CASE.split)
    torch.library.opcheck(operators.scalar_mlp_cpu, (x, x2, weights, *rest, 150))
    kept = operators.scalar_mlp_cpu(x, x2, weights, *rest, 150)[2].detach()
    grads = [torch.randn(150, n, dtype=x.dtype).requires_grad_() for n in (4, 5)]
    operands = (*grads, x, x2, weights, kept, *rest)
    torch.library.opcheck(operators.scalar_mlp_backward_cpu, (*operands, True))
    h = torch.randn(150, 17, dtype=x.dtype).requires_grad_()
    torch.library.opcheck(operators.scalar_mlp_double_backward_cpu, (h, None, *operands, True))
    both = h, torch.randn_like(weights).requires_grad_()
    torch.library.opcheck(operators.scalar_mlp_double_backward_cpu, (*both, *operands, True))


def test_graphs():
    def loss(x, weights, x2):
        """As of forces: of the gradient of a sum, and of the result."""
        out = OP.op(x, weights, x2, CASE)
        forces = torch.autograd.grad(out.square().sum(), (x, x2), create_graph=True)
        return sum(f.square().sum() for f in forces) + out.sum()

    traced = torch.fx.experimental.proxy_tensor.make_fx(
        lambda *operands: torch.autograd.grad(loss(*operands), operands), tracing_mode="symbolic"
    )(*(t.requires_grad_() for t in OP.make_inputs(CASE)))
    compiled = torch.compile(
        lambda *operands: OP.op(*operands, CASE).square().sum(),
        fullgraph=True, dynamic=True, backend="aot_eager",
    )  # fmt: skip
    for edges in (150, 0, 3):
        operands = tuple(t.requires_grad_() for t in OP.make_inputs(CASE, edges=edges))
        with use_backend("reference"):
            want = torch.autograd.grad(loss(*operands), operands)
            first = torch.autograd.grad(OP.op(*operands, CASE).square().sum(), operands)
        for one, other in zip(traced(*operands), want, strict=True):
            assert_close(one, other, 2)
        for one, other in zip(
            torch.autograd.grad(compiled(*operands), operands), first, strict=True
        ):
            assert_close(one, other, 1)


def dweights_made(loss, inputs):
    """How many numbers the operators of a pass make for the gradient of weights."""
    made = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function.namespace == "fastmlip":
                made.append(result[-1].numel())
            return result

    with Seen():
        torch.autograd.grad(loss, inputs, retain_graph=True)
    return made


def test_forces_make_no_gradient_of_weights():
    x, weights, x2 = (t.requires_grad_() for t in OP.make_inputs(CASE))
    out = OP.op(x * 1, weights * 1, x2 * 1, CASE).sum()
    assert dweights_made(out, [x]) == [0]
    assert dweights_made(out, [x, weights]) == dweights_made(out, [weights]) == [weights.numel()]
    (force,) = torch.autograd.grad(out, x, create_graph=True)
    assert dweights_made(force.sum(), [x]) == [0]
    assert dweights_made(force.sum(), [weights]) == [weights.numel()]


def test_what_is_kept():
    """What hidden layers are before SiLU, of calls whose gradient may be asked for."""
    x, weights, x2 = OP.make_inputs(CASE)
    for grad, wanted, kept in ((True, True, 150), (True, False, 0), (False, True, 0)):
        with torch.set_grad_enabled(grad):
            first, _ = ops.scalar_mlp(x.requires_grad_(wanted), weights, CASE.widths, x2, 4)
        assert first.requires_grad == (kept > 0)
        if kept:
            assert [t.shape for t in first.grad_fn.saved_tensors if t is not None][-1] == (150, 44)


def test_a_row_that_is_not_finite_stays_alone():
    inputs = OP.make_inputs(CASE)
    for bad in (float("nan"), float("inf")):
        rows = inputs.x.clone()
        rows[70, 3] = bad
        got = derivatives(partial(OP.op, problem=CASE), inputs._replace(x=rows), 1)
        want = derivatives(partial(OP.op, problem=CASE), inputs, 1)
        for one, other in zip(got, want, strict=True):
            if one.name == "d_weights":
                continue
            assert not one.value[70].isfinite().all()
            others = torch.arange(150) != 70
            assert torch.equal(one.value[others], other.value[others]), one.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silu_of_large_numbers(dtype):
    x = torch.tensor(
        [-1e4, -700.0, -200.0, -110.0, -90.0, -80.0, -20.0, 0.0, 20.0, 90.0, 800.0, 1e4]
    )
    x, weights = x.to(dtype)[:, None], torch.ones(2, dtype=dtype)
    for got, want in zip(
        derivatives(partial(ops.scalar_mlp, widths=(1, 1, 1)), (x, weights), 2),
        derivatives(partial(reference, widths=(1, 1, 1)), (x.double(), weights.double()), 2),
        strict=True,
    ):
        assert got.value.isfinite().all()
        assert_close(got.value, want.value, got.order, got.name)
        assert (
            (got.value - want.value).abs().max() <= 1e-30
            or got.value.dim() == 1
            or (got.value[0] - want.value[0]).abs() <= 1e-30
        )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(150).double()}, ValueError, "x: expected shape"),
        ({"x": torch.zeros(150, 12).half()}, TypeError, "x: expected float32 or float64"),
        ({"x": torch.zeros(150, 13).double()}, ValueError, r"x: expected widths\[0\] = 17 columns"),
        ({"x2": torch.zeros(149, 5).double()}, ValueError, "x2: expected 150 rows as x has"),
        ({"x2": torch.zeros(5).double()}, ValueError, "x2: expected shape"),
        ({"x2": torch.zeros(150, 5)}, TypeError, "x2: expected torch.float64 as x has"),
        ({"x2": None}, ValueError, r"x: expected widths\[0\] = 17 columns, got 12"),
        ({"weights": torch.zeros(3).double()}, ValueError, "weights: expected the 494 of layers"),
        ({"weights": torch.zeros(494)}, TypeError, "weights: expected torch.float64"),
        ({"widths": (17,)}, ValueError, "widths: expected"),
        ({"widths": (17, -1, 2)}, ValueError, "widths: expected"),
        ({"split": 10}, ValueError, "split: expected 0 to 9 columns"),
        ({"weights": torch.zeros(494).double().to("meta")}, ValueError, "weights: expected device"),
    ],
)
def test_bad_arguments(changes, error, message):
    operands = OP.arguments(OP.make_inputs(CASE), CASE) | changes
    with pytest.raises(error, match=message):
        ops.scalar_mlp(**operands)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(150, 13)}, "x: expected shape"),
        ({"x2": torch.zeros(3, 5)}, "x2: expected shape"),
        ({"x2": torch.zeros(150, 5).double()}, "x2: expected the dtype"),
        ({"weights": torch.zeros(3)}, "weights: expected 494"),
        ({"widths": [17]}, "widths: expected"),
        ({"split": 10}, "split: expected"),
        ({"kept": torch.zeros(150, 3)}, "kept: expected shape"),
        ({"grad": torch.zeros(150, 5)}, "grad: expected shape"),
        ({"grad2": torch.zeros(10, 5)}, "grad2: expected shape"),
    ],
)
def test_the_operators_check_again(changes, message):
    """Compiled models call them without the page's checks."""
    x, weights, x2 = OP.make_inputs(CASE, torch.float32)
    operands = {
        "grad": torch.zeros(150, 4), "grad2": None, "x": x, "x2": x2, "weights": weights,
        "kept": torch.zeros(150, 44), "widths": list(CASE.widths), "split": 4,
        "wants_dweights": False,
    }  # fmt: skip
    torch.ops.fastmlip.scalar_mlp_backward_cpu(**operands)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastmlip.scalar_mlp_backward_cpu(**(operands | changes))


def test_the_reference_backend():
    inputs = OP.make_inputs(CASE)
    with use_backend("reference"):
        want = reference(**OP.arguments(inputs, CASE))
        for one, other in zip(ops.scalar_mlp(**OP.arguments(inputs, CASE)), want, strict=True):
            assert torch.equal(one, other)


def test_the_module_is_nequips():
    from nequip.nn import ScalarMLPFunction

    for depth in (0, 2):
        stock = ScalarMLPFunction(17, 9, depth, 12, "silu" if depth else None).double()
        layers = [layer for layer in stock.mlp if hasattr(layer, "alpha")]
        module = ScalarMLP(stock.dims, split=4)
        x = torch.randn(30, 17, dtype=torch.float64)
        got = module(x[:, :12], [layer.weight * layer.alpha for layer in layers], x[:, 12:])
        assert_close(torch.cat(got, 1), stock(x).detach(), 0)
    assert str(module) == "ScalarMLP(17 -> 12 -> 12 -> 9 | split at 4)"


def test_gradients_of_a_batched_call():
    """``vmap`` hides that its operands require gradients."""
    x = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4 * 7 + 7 * 2, dtype=torch.float64, requires_grad=True)

    def sums(of):
        return torch.func.vmap(lambda rows: of(rows, weights, (4, 7, 2)).square().sum())(x).sum()

    got, want = (torch.autograd.grad(sums(of), (x, weights)) for of in (ops.scalar_mlp, reference))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1, "vmap")


def test_matrices_of_other_shapes_are_refused():
    """Also where their numbers are as many."""
    with pytest.raises(ValueError, match=r"weights: expected matrices between \(4, 6\)"):
        ScalarMLP([4, 6])(torch.zeros(3, 4), [torch.zeros(6, 4)])

"""radial_conv: every row of the table against the reference, and what is its own."""

from functools import lru_cache, partial

import pytest
import torch

from fastmlip import ops, use_backend
from fastmlip.ops import _spline
from fastmlip.ops.radial_conv import reference
from fastmlip.testing import OPERATORS, assert_close, derivatives, poison_empty

OP = OPERATORS["radial_conv"]
DTYPES = (torch.float32, torch.float64)
CASES = [
    pytest.param(name, dtype, id=f"{name}-{dtype}")
    for name in OP.cases
    for dtype in DTYPES
]  # fmt: skip


@lru_cache(maxsize=1)  # rows come one after the other
def truth(name):
    """Operands that float32 holds exactly, and the reference's derivatives in float64."""
    case = OP.cases[name]
    inputs = OP.make_inputs(case, torch.float32, nodes=5, edges=90)
    reference = partial(OP.reference, problem=case.problem)
    return inputs, derivatives(reference, inputs.to(torch.float64), 2)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_all_derivatives_match_the_reference(name, dtype):
    inputs, expected = truth(name)
    function = partial(OP.op, problem=OP.cases[name].problem)
    with poison_empty():
        found = derivatives(function, inputs.to(dtype), 2)
    for got, want in zip(found, expected, strict=True):
        assert got.value.dtype == dtype
        assert_close(got.value, want.value, got.order + 1, f"{name}: {got.name}")


@pytest.mark.parametrize("name", ["odd multiplicities, pairs", "odd multiplicities, spline"])
@pytest.mark.parametrize(
    ("nodes", "edges"), [(0, 0), (1, 0), (4, 0), (1, 1), (3, 17), (40, 700), (2, 500)]
)
def test_sizes(name, nodes, edges):
    case = OP.cases[name]
    inputs = OP.make_inputs(case, nodes=nodes, edges=edges)
    got = derivatives(partial(OP.op, problem=case.problem), inputs, 1)
    want = derivatives(partial(OP.reference, problem=case.problem), inputs, 1)
    for one, other in zip(got, want, strict=True):
        assert_close(one.value, other.value, 2, one.name)


@pytest.mark.parametrize("kept_bytes", [2 << 30, 0])
def test_many_chunks_give_what_one_gives(kept_bytes, monkeypatch):
    """Rows of more than the 12 MiB that the kernel makes at a time: single edges, pairs and groups
    of four, whose gradients come together in several chunks."""
    monkeypatch.setitem(ops.radial_conv.__globals__, "KEPT_BYTES", kept_bytes)
    case = OP.cases["nequip-M-hidden, pairs"]
    inputs = OP.make_inputs(case, torch.float64, nodes=60, edges=9000)
    product, pairs = case.problem.product, torch.arange(9000)
    members = torch.randperm(9000, generator=torch.Generator().manual_seed(2))
    twos, fours = members[:3000].view(2, -1), members[3000:6000].view(4, -1)
    pairs[twos], pairs[fours] = twos[0].clone(), fours[0].clone()

    def fast(x, edge_attr, radial, weight):
        return ops.radial_conv(
            x, edge_attr, radial, weight, inputs.edge_dst, inputs.edge_src, product,
            edge_pair=pairs,
        )  # fmt: skip

    def plain(x, edge_attr, radial, weight):
        edge_weight = radial[pairs] @ weight
        return ops.tensor_product_conv(
            x, edge_attr, edge_weight, inputs.edge_dst, inputs.edge_src, product
        )

    weight = inputs.weight.detach()  # with a gradient, other operators would run
    found = []
    for function in (fast, plain):
        leaves = [t.detach().requires_grad_() for t in inputs[:3]]
        out = function(*leaves, weight)
        found.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 2)


@pytest.mark.parametrize("name", ["deep network", "one weight, pairs", "own weights"])
@pytest.mark.parametrize("room", [120, 3, 0])
def test_kept_rows_give_what_rows_made_again_give(name, room):
    """With little room, as where the rows of all pairs are more than 2 GiB, none are kept, and
    gradients go back one by one."""
    case = OP.cases[name]
    inputs = OP.make_inputs(case, nodes=7, edges=120)
    named = {"edge_pair": None, "first_row": None} | OP.arguments(inputs, case)
    product, order = named["problem"], ops.edge_order(inputs.edge_dst, inputs.edge_src, 7)
    operands = [*inputs[:3], *(named[k] for k in ("weight", "hidden", "edge_pair", "first_row"))]
    operands += [order, product.tables()]
    sizes = (product.dim_out, product.weight_numel)
    out, kept = torch.ops.fastmlip.radial_conv_cpu(*operands, *sizes, room)
    assert_close(out, OP.reference(*inputs, problem=case.problem), 1)
    grad = torch.randn_like(out)
    got = torch.ops.fastmlip.radial_conv_backward_cpu(grad, *operands, kept, *sizes, room)
    leaves = [t.clone().requires_grad_() for t in inputs[:3]]
    value = OP.reference(*leaves, *inputs[3:], problem=case.problem)
    for one, other in zip(got, torch.autograd.grad(value, leaves, grad), strict=True):
        assert_close(one, other, 2)


@pytest.mark.parametrize("name", ["deep network", "one weight, pairs", "one interval, spline"])
def test_the_order_of_nodes_changes_no_bit(name):
    case = OP.cases[name]
    nodes = 1100  # more than 1,000, which are not sorted
    inputs = OP.make_inputs(case, torch.float32, nodes=nodes, edges=3000)
    positions = torch.rand(nodes, 3, generator=torch.Generator().manual_seed(1))
    found = []
    for where in (None, positions):
        order = ops.edge_order(inputs.edge_dst, inputs.edge_src, nodes, where)
        leaves = [t.clone().requires_grad_() for t in inputs[:3]]
        x, edge_attr, radial = leaves
        operands = inputs._replace(x=x, edge_attr=edge_attr, radial=radial)
        out = ops.radial_conv(**OP.arguments(operands, case), order=order)
        grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
        found.append([out, *grads, *second])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0 and torch.equal(one, other)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_slope_of_a_fine_spline_keeps_the_digits_of_float32(backend):
    """Its coefficients differ little from row to row, and their differences make the slope."""
    case = OP.cases["odd multiplicities, spline"]
    inputs = OP.make_inputs(case, torch.float32, nodes=4, edges=60)
    rows, columns = 1000, case.problem.product.weight_numel
    coefficients = (torch.linspace(0, 3, rows)[:, None] + torch.arange(columns)).cos()
    chosen = torch.randint(0, rows - 5, (60,), generator=torch.Generator().manual_seed(0))
    inputs = inputs._replace(weight=_spline.table(coefficients), chosen=chosen)
    slopes = []
    for function, dtype in ((OP.op, torch.float32), (OP.reference, torch.float64)):
        operands = inputs.to(dtype)
        radial = operands.radial.clone().requires_grad_()
        with use_backend(backend):
            out = function(*operands._replace(radial=radial), problem=case.problem)
        slopes += torch.autograd.grad(out.square().sum(), radial)
    error = (slopes[0] - slopes[1]).abs().max() / slopes[1].abs().max()
    assert error < 1e-6


@pytest.mark.parametrize("name", ["own weights", "one interval, spline"])
def test_other_backends_agree(name):
    case = OP.cases[name]
    inputs = OP.make_inputs(case)
    want = OP.op(*inputs, problem=case.problem)
    with use_backend("reference"):
        assert_close(OP.op(*inputs, problem=case.problem), want, 1, name)


@pytest.mark.parametrize("name", ["deep network", "one interval, spline"])
def test_gradients_of_weights(name):
    """Composed of other operators, the first and the second ones."""
    case = OP.cases[name]
    inputs = OP.make_inputs(case)
    names = ["x", "weight"] + ["hidden"] * (case.problem.depth > 0)

    def with_weights(function):
        def of(*operands):
            named = OP.arguments(inputs, case) | dict(zip(names, operands, strict=True))
            return function(**named)

        return derivatives(of, [getattr(inputs, name) for name in names], 2)

    for got, want in zip(with_weights(ops.radial_conv), with_weights(reference), strict=True):
        assert want.value.abs().max() > 0 or want.order == 2
        assert_close(got.value, want.value, got.order + 1, got.name)


@pytest.mark.parametrize("name", ["deep network", "one weight, pairs", "one interval, spline"])
def test_strides_and_graphs(name):
    case = OP.cases[name]
    inputs = OP.make_inputs(case)
    strided = [t.repeat_interleave(2, 0)[::2] if t.dim() == 1 else t.mT.contiguous().mT
               for t in inputs]  # fmt: skip
    tables = case.problem.product.tables()

    def function(*operands):
        named = OP.arguments(type(inputs)(*operands), case)
        return ops.radial_conv(**named, tables=tables)

    assert torch.equal(function(*strided), function(*inputs))

    def energy(*operands):
        return function(*operands).square().sum()

    compiled = torch.compile(energy, fullgraph=True, dynamic=True, backend="aot_eager")
    for edges in (56, 31):
        operands = [
            t.requires_grad_() if t.is_floating_point() else t
            for t in OP.make_inputs(case, edges=edges)
        ]
        leaves = operands[:3]
        got = torch.autograd.grad(compiled(*operands), leaves)
        for one, other in zip(got, torch.autograd.grad(energy(*operands), leaves), strict=True):
            assert_close(one, other, 1)


@pytest.mark.parametrize(
    "name", ["deep network", "one weight, pairs", "one interval, spline", "own weights"]
)
def test_opcheck(name):
    case = OP.cases[name]
    inputs = OP.make_inputs(case, nodes=3, edges=20)
    named = {"edge_pair": None, "first_row": None} | OP.arguments(inputs, case)
    product = named["problem"]
    order = ops.edge_order(inputs.edge_dst, inputs.edge_src, inputs.x.shape[0])
    rest = [named[name] for name in ("weight", "hidden", "edge_pair", "first_row")]
    rest += [order, product.tables()]
    sizes = (product.dim_out, product.weight_numel)
    leaves = [t.requires_grad_() for t in inputs[:3]]
    forward, kept = torch.ops.fastmlip.radial_conv_cpu, inputs.x.new_empty(0, product.weight_numel)
    torch.library.opcheck(forward, (*leaves, *rest, *sizes, 0))
    torch.library.opcheck(forward, (*leaves, *rest, *sizes, 20))
    grad = torch.randn(3, product.dim_out, dtype=inputs.x.dtype, requires_grad=True)
    torch.library.opcheck(
        torch.ops.fastmlip.radial_conv_backward_cpu, (grad, *leaves, *rest, kept, *sizes, 20)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_spline_table_may_lie_anywhere(dtype):
    """The kernels read whole cache lines of it, and the constants of a compiled model start at any
    multiple of 16 bytes."""
    case = OP.cases["nequip-M-hidden, spline"]
    inputs = OP.make_inputs(case, dtype, nodes=20, edges=900)
    moved = torch.empty(inputs.weight.numel() + 1, dtype=dtype)[1:].view_as(inputs.weight)
    moved.copy_(inputs.weight)
    assert moved.data_ptr() % 64 and moved.is_contiguous()
    function = partial(OP.op, problem=case.problem)
    results = (derivatives(function, inputs._replace(weight=w), 1) for w in (inputs.weight, moved))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.value, other.value), one.name


CASE = OP.cases["own weights"]
ARGUMENTS = ("x", "edge_attr", "radial", "weight", "edge_dst", "edge_src")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"radial": torch.zeros(56, 12, dtype=torch.float64)}, ValueError, "weight: expected 12"),
        ({"radial": torch.zeros(55, 13, dtype=torch.float64)}, ValueError, "radial: expected E"),
        ({"weight": torch.zeros(13, 3, dtype=torch.float64)}, ValueError, "weight: expected shape"),
        ({"weight": torch.zeros(13, 1)}, ValueError, "weight: expected shape"),
        ({"edge_attr": torch.zeros(56, 2)}, ValueError, "edge_attr: expected shape"),
        ({"x": torch.zeros(3, 4, dtype=torch.float16)}, TypeError, "x: expected float32"),
        ({"edge_dst": torch.zeros(56)}, TypeError, "edge_dst: expected int32"),
        ({"edge_pair": torch.zeros(56)}, TypeError, "edge_pair: expected int64"),
        ({"edge_pair": torch.full((56,), 56)}, RuntimeError, r"edge_pair\[0\] = 56 is out of"),
        ({"edge_pair": torch.arange(56).roll(1)}, RuntimeError, "expected it to stand for itself"),
        ({"first_row": torch.zeros(56, dtype=torch.int64)}, ValueError,
         "weight: expected the table"),
        ({"edge_src": torch.full((56,), 3)}, RuntimeError, "edge_src"),
        ({"hidden": torch.zeros(12, dtype=torch.float64)}, ValueError, "hidden: expected 13 x 13"),
        ({"hidden": torch.zeros(169)}, TypeError, "hidden: expected torch.float64"),
    ],
)  # fmt: skip
def test_bad_arguments(changes, error, message):
    operands = dict(zip(ARGUMENTS, OP.make_inputs(CASE), strict=False)) | changes
    with pytest.raises(error, match=message):
        ops.radial_conv(**operands, problem=CASE.problem.product)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"first_row": torch.full((56,), 1)}, RuntimeError, r"first_row\[0\] = 1 is out"),
        ({"first_row": torch.full((56,), -1)}, RuntimeError, r"first_row\[0\] = -1 is out"),
        ({"radial": torch.zeros(56, 6, dtype=torch.float64)}, ValueError, "radial: expected shape"),
        ({"weight": torch.zeros(1, 5, 64, dtype=torch.float64)}, ValueError, "at least 6 rows"),
        ({"weight": torch.zeros(2, 6, 64, dtype=torch.float64)}, ValueError, "expected the table"),
        ({"hidden": torch.zeros(6, dtype=torch.float64)}, ValueError, "one of them"),
        ({"edge_pair": torch.zeros(56, dtype=torch.int64)}, ValueError, "one of them"),
    ],
)  # fmt: skip
def test_bad_arguments_of_splines(changes, error, message):
    case = OP.cases["one interval, spline"]
    operands = OP.arguments(OP.make_inputs(case), case) | changes
    with pytest.raises(error, match=message):
        ops.radial_conv(**operands)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_row_that_stands_for_no_edge_is_not_read(backend):
    """Whatever is in it: 0 times a number that is not finite would be NaN in every gradient."""
    case = OP.cases["deep network"]
    inputs = OP.make_inputs(case, nodes=7, edges=40)
    named = OP.arguments(inputs, case)
    unread = named["edge_pair"] != torch.arange(40)
    assert unread.any()
    results = []
    for number in (0.0, float("nan")):
        radial = torch.where(unread[:, None], number, inputs.radial)
        operands = {k: named[k].requires_grad_() for k in ("x", "edge_attr", "weight", "hidden")}
        with use_backend(backend):
            out = ops.radial_conv(**named | operands | {"radial": radial.requires_grad_()})
        found = torch.autograd.grad(out.square().sum(), [radial, *operands.values()])
        results.append([out, *found])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)

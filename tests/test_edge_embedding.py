"""The operator against its reference, e3nn and torch: every derivative, odd sizes, errors."""

from functools import partial

import pytest
import torch
from e3nn.o3 import SphericalHarmonics

import fastmlip
from fastmlip import use_backend
from fastmlip.ops.edge_embedding import edge_embedding
from fastmlip.spherical_harmonics import NORMALIZATIONS, scales, tables
from fastmlip.testing import (
    OPERATORS,
    assert_close,
    assert_same_derivatives,
    derivatives,
    poison_empty,
)
from fastmlip.testing.cases.edge_embedding import Case, arguments
from fastmlip.testing.process import run_python

OP = OPERATORS["edge_embedding"]
BACKENDS = ("cpp", "reference")
ORDERS = {torch.float64: 3, torch.float32: 2}


def functions(case):
    return tuple(partial(f, problem=case) for f in (OP.op, OP.reference))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ORDERS)
@pytest.mark.parametrize("name", OP.cases)
def test_all_derivatives(name, dtype, backend):
    case = OP.cases[name]
    op, reference = functions(case)
    order = min(ORDERS[dtype], 2) if case.l_max > 4 else ORDERS[dtype]
    with fastmlip.use_backend(backend), poison_empty():
        assert_same_derivatives(op, reference, OP.make_inputs(case, dtype), order)


@pytest.mark.parametrize("edges", [0, 1, 7, 8, 9, 257, 600])
def test_any_number_of_edges(edges):
    case = OP.cases["pairs-of-types"]
    op, reference = functions(case)
    with poison_empty():
        assert_same_derivatives(op, reference, OP.make_inputs(case, edges=edges, seed=4), 2)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_harmonics_are_those_of_e3nn(normalization):
    vec = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stock = SphericalHarmonics(list(range(12)), True, normalization)(vec)
    assert_close(fastmlip.nn.SphericalHarmonics(11, normalization)(vec), stock, 1)
    single = fastmlip.nn.SphericalHarmonics(2)(vec.float().reshape(4, 10, 3))
    assert single.dtype == torch.float32 and single.shape == (4, 10, 9)


def test_radial_part_is_that_of_torch():
    x = torch.linspace(0.001, 1.3, 500, dtype=torch.float64)
    vec = torch.stack([x, 0 * x, 0 * x], 1)
    roots = torch.arange(1, 9, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    out = edge_embedding(vec, roots, one, l_max=-1, p=3)
    cutoff = (1 - 10 * x**3 + 15 * x**4 - 6 * x**5) * (x < 1)
    assert_close(out.norm[:, 0], x)
    assert_close(out.cutoff[:, 0], cutoff)
    assert_close(out.embedding, roots * torch.sinc(x[:, None] * roots) * cutoff[:, None])
    assert out.attrs.shape == (500, 0)
    assert (out.embedding[x >= 1] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_edge_without_length_is_finite_and_spoils_no_other(backend):
    case = OP.cases["nequip-M"]
    inputs = OP.make_inputs(case, edges=9)
    inputs.edge_vec[4] = 0
    op, _ = functions(case)
    others = [e for e in range(9) if e != 4]
    with fastmlip.use_backend(backend):
        found = derivatives(op, inputs, 2)
        cut = inputs._replace(edge_vec=inputs.edge_vec[others])
        one = OP.op(*cut, problem=case)
    assert all(value.value.isfinite().all() for value in found)
    assert torch.equal(found[0].value[others], one)
    assert (next(v.value for v in found if v.name == "d_edge_vec")[4] == 0).all()
    row = found[0].value[4]
    assert row[:3].tolist() == [0, 0, 1] and (row[3:11] == 0).all() and row[-1] == 1
    assert_close(row[11:-1], case.factor * inputs.roots)


def test_short_edges_keep_all_digits():
    """Against torch's formulas, which lose digits by cancellation, in extended precision."""
    x = torch.tensor([1e-9, 1e-4, 0.01, 0.0198, 0.02, 0.15, 0.16], dtype=torch.float64)
    vec = torch.stack([0 * x, x, 0 * x], 1).requires_grad_()
    roots = torch.arange(1, 9, dtype=torch.float64)
    out = edge_embedding(vec, roots, torch.ones((), dtype=torch.float64), l_max=0, p=6)
    slope = torch.autograd.grad(out.embedding.sum(), vec, create_graph=True)[0]
    second = torch.autograd.grad(slope.sum(), vec)[0][:, 1]
    z = torch.pi * roots * x[:, None]
    terms = range(19)
    factorial = torch.arange(1, 40, dtype=torch.float64).cumprod(0)

    def series(power):  # of sin(z)/z, differentiated
        total = torch.zeros_like(z)
        for k in terms:
            n = 2 * k
            falling = 1.0
            for i in range(power):
                falling *= n - i
            if falling:
                total = total + (-1) ** k * falling / factorial[n] * z ** (n - power)
        return total

    c = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    c1, c2 = -168 * x**5 * (1 - x) ** 2, -168 * x**4 * (1 - x) * (5 - 7 * x)
    w = roots * torch.pi
    b, b1, b2 = roots * series(0), roots * w * series(1), roots * w**2 * series(2)
    first = (b1 * c[:, None] + b * c1[:, None]).sum(1)
    for row in range(len(x)):  # each edge by its own scale
        assert_close(slope[row, 1], first[row], 2)
    expected = (b2 * c[:, None] + 2 * b1 * c1[:, None] + b * c2[:, None]).sum(1)
    assert_close(second, expected, 2)


def test_strided_operands():
    case = OP.cases["pairs-of-types"]
    op, reference = functions(case)
    inputs = OP.make_inputs(case)
    strided = inputs._replace(
        edge_vec=torch.stack([inputs.edge_vec, inputs.edge_vec], 2)[..., 0],
        edge_type=inputs.edge_type.T.contiguous().T,
    )
    assert_same_derivatives(op, reference, strided, 2)


def test_gradients_of_one_output_at_a_time():
    """An output that is not used has no gradient, which kernels take as zeros."""
    case = OP.cases["odd"]
    inputs = OP.make_inputs(case)
    vec, roots = (t.requires_grad_() for t in inputs[:2])
    keywords = arguments(inputs, case) | {"edge_vec": vec, "roots": roots}

    def gradients(function, field):
        loss = getattr(function(**keywords), field).pow(3).sum()
        first = torch.autograd.grad(loss, (vec, roots), create_graph=True, materialize_grads=True)
        sum_ = sum((g * g).sum() for g in first)
        return *first, *torch.autograd.grad(sum_, (vec, roots), materialize_grads=True)

    from fastmlip.ops.edge_embedding import reference

    for backend in BACKENDS:
        with fastmlip.use_backend(backend):
            for field in ("length", "norm", "attrs", "embedding", "cutoff"):
                got, want = gradients(edge_embedding, field), gradients(reference, field)
                for number, (g, w) in enumerate(zip(got, want, strict=True)):
                    assert_close(g, w, 2, f"{field} {number}")


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_other_instruction_sets(isa):
    if isa == "avx2" and torch.ops.fastmlip.isa() == "portable":
        pytest.skip("this processor has no AVX2")
    printed = run_python(
        """
        from functools import partial
        import torch
        from fastmlip.testing import OPERATORS, assert_same_derivatives
        op = OPERATORS["edge_embedding"]
        for name in ("odd", "nequip-L"):
            for dtype in (torch.float32, torch.float64):
                case = op.cases[name]
                assert_same_derivatives(
                    partial(op.op, problem=case), partial(op.reference, problem=case),
                    op.make_inputs(case, dtype), 2,
                )
        print(torch.ops.fastmlip.isa())
        """,
        FASTMLIP_ISA=isa,
    )
    assert printed.strip() == isa


# ---------------------------------------------------------------- graphs


def test_opcheck():
    case = OP.cases["pairs-of-types"]
    inputs = OP.make_inputs(case, edges=9)
    vec, roots = (t.requires_grad_() for t in inputs[:2])
    operands = (
        vec, roots, case.rmax_recip(), inputs.edge_type, tables(2), 2, 6, 0.3, False
    )  # fmt: skip
    widths = (1, 1, 9, 8, 1)
    grads = [torch.randn(9, n, dtype=torch.float64).requires_grad_() for n in widths]
    directions = [torch.randn_like(t).requires_grad_() for t in (vec, roots)]
    some = (None, None, grads[2], grads[3], None)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor",
             "test_aot_dispatch_dynamic")  # fmt: skip
    ops = [
        getattr(torch.ops.fastmlip, f"edge_embedding{name}_cpu").default
        for name in ("", "_backward", "_double_backward")
    ]
    torch.library.opcheck(ops[0], operands, test_utils=utils)
    torch.library.opcheck(ops[1], (*some, *operands), test_utils=utils)
    operands = (*directions, *grads, *operands)
    torch.library.opcheck(ops[2], operands, test_utils=utils[:3])


@pytest.mark.parametrize("per_type", [False, True])
def test_torch_compile_with_a_gradient_inside(per_type):
    module = fastmlip.nn.EdgeEmbedding(
        [[5.0, 4.0], [3.0, 4.5]] if per_type else 5.0, 2, trainable=True, dtype=torch.float32
    )
    weight = torch.linspace(-1, 1, 17)

    def energy(vec, types):
        out = module(vec, types)
        return (torch.cat([out.attrs, out.embedding], 1).sin() @ weight).sum()

    compiled = torch.compile(energy, fullgraph=True, dynamic=True, backend="aot_eager")
    for edges in (6, 11):
        vec = torch.randn(edges, 3, dtype=torch.float64).requires_grad_()
        types = torch.arange(2 * edges).reshape(2, edges) % 2
        leaves = (vec, module.bessel_weights)
        want = torch.autograd.grad(energy(vec, types), leaves)
        got = torch.autograd.grad(compiled(vec, types), leaves)
        for g, w in zip(got, want, strict=True):
            assert_close(g, w, 1)


def test_make_fx_traces_a_force_loss_and_its_gradient():
    from torch.fx.experimental.proxy_tensor import make_fx

    roots = torch.arange(1, 9, dtype=torch.float64)
    one = torch.full((), 0.2, dtype=torch.float64)

    def loss_gradient(vec, roots):
        out = edge_embedding(vec, roots, one, l_max=1, dtype=torch.float32)
        energy = out.attrs.sin().sum() + out.embedding.square().sum()
        forces = torch.autograd.grad(energy, vec, create_graph=True)[0]
        return torch.autograd.grad(forces.square().sum(), (vec, roots))

    def inputs(edges):
        vec = torch.randn(edges, 3, dtype=torch.float64).requires_grad_()
        return vec, roots.clone().requires_grad_()

    graph = make_fx(loss_gradient, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs(5))
    assert "edge_embedding_double_backward" in graph.code
    operands = inputs(13)
    for got, want in zip(graph(*operands), loss_gradient(*operands), strict=True):
        assert torch.equal(got, want)


# ---------------------------------------------------------------- errors

GOOD = {"edge_vec": (4, 3), "roots": (8,), "rmax_recip": ()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"edge_vec": torch.zeros(4, 2)}, ValueError, r"edge_vec: expected shape \[E, 3\], got"),
        ({"edge_vec": torch.zeros(4, 3).half()}, TypeError, "edge_vec: expected float32 or"),
        ({"roots": torch.ones(8)}, TypeError, "roots: expected float64, got torch.float32"),
        ({"roots": torch.ones(2, 4).double()}, ValueError, r"roots: expected shape \[B\] or"),
        ({"rmax_recip": torch.ones(())}, TypeError, "rmax_recip: expected float64"),
        ({"rmax_recip": torch.ones(4).double()}, ValueError, "edge_type: needed"),
        ({"l_max": 12}, ValueError, "l_max: expected -1 .* to 11, got 12"),
        ({"p": 1}, ValueError, "p: expected an integer from 2 to 1000, got 1"),
        ({"p": 6.5}, ValueError, "p: expected an integer"),
        ({"dtype": torch.float16}, TypeError, "dtype: expected torch.float32 or"),
        ({"edge_type": torch.zeros(2, 3).long()}, ValueError, r"edge_type: expected shape \[2, 4"),
        ({"edge_type": torch.zeros(2, 4)}, TypeError, "edge_type: expected int64"),
        (
            {"edge_type": torch.zeros(2, 4).long(), "rmax_recip": torch.ones(3).double()},
            ValueError, r"rmax_recip: expected T \* T numbers",
        ),
        (
            {"edge_type": torch.full((2, 4), 2), "rmax_recip": torch.ones(4).double()},
            RuntimeError, r"edge_type\[\d\]\[\d+\] = 2 is out of range: expected 0 <= value < 2",
        ),
        ({"tables": tables(3)}, RuntimeError, "tables: not a table of this l_max"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    arguments = {name: torch.ones(shape).double() for name, shape in GOOD.items()}
    with pytest.raises(error, match=message):
        edge_embedding(**{**arguments, "l_max": 1, **change})


@pytest.mark.parametrize("bad", [(0, 2), (-1, 1), (1, -1)])
def test_a_type_out_of_range_is_refused_by_the_reference_too(bad):
    """Also where the pair of types is the number of another pair."""
    arguments = {name: torch.ones(shape).double() for name, shape in GOOD.items()}
    arguments |= {"rmax_recip": torch.ones(4).double(), "edge_type": torch.tensor([bad] * 4).T}
    with use_backend("reference"), pytest.raises(RuntimeError, match="edge_type: every entry"):
        edge_embedding(**arguments, l_max=1)


def test_errors_of_the_modules_and_tables():
    with pytest.raises(ValueError, match="r_max: expected positive numbers"):
        fastmlip.nn.EdgeEmbedding(-1.0, 1)
    with pytest.raises(ValueError, match=r"r_max: expected a number or \[T\]\[T\]"):
        fastmlip.nn.EdgeEmbedding([1.0, 2.0], 1)
    with pytest.raises(ValueError, match="normalization: expected one of"):
        fastmlip.nn.SphericalHarmonics(2, "none")
    with pytest.raises(ValueError, match="l_max: expected -1"):
        scales(12, "norm")


def test_the_case_table_has_what_presets_use():
    assert {case.l_max for case in OP.cases.values()} >= {-1, 0, 1, 2, 3, 4}
    assert isinstance(OP.cases["nequip-S"], Case)

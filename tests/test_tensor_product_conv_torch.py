"""What torch asks of an operator: numerical gradients, opcheck, autocast, casts of the module."""

import copy
from functools import partial
from itertools import product

import pytest
import torch
from e3nn.o3 import Irreps

from fastmlip import nn, use_backend
from fastmlip.testing import OPERATORS, Case, Inputs, assert_close, make_inputs
from fastmlip.testing.cases.tensor_product_conv import nequip_case

OP = OPERATORS["tensor_product_conv"]
TINY: dict[str, Case] = {
    "vectors": nequip_case("2x0e+1x1o", "0e+1o", "1x0e+1x1o"),
    "shared output": OP.cases["path-weights"],
    "l up to 2": nequip_case("1x1e+1x2e", "1o+2e", "1x1o+1x2e"),
    "one path": nequip_case("2x1o", "1o", "0e"),
}


def leaves(inputs):
    return [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]


@pytest.mark.parametrize(
    ("name", "backend"), [*[(n, "cpp") for n in TINY], ("one path", "reference")]
)
def test_gradients_are_those_of_finite_differences(name, backend):
    case = TINY[name]
    inputs = leaves(make_inputs(case, nodes=3, edges=4))
    with use_backend(backend):
        conv = partial(OP.op, problem=case.problem)
        assert torch.autograd.gradcheck(conv, inputs)
        assert torch.autograd.gradgradcheck(conv, inputs, fast_mode=True)


@pytest.mark.parametrize("name", TINY)
def test_third_derivatives_are_those_of_finite_differences(name):
    case = TINY[name]
    *floating, edge_dst, edge_src = leaves(make_inputs(case, nodes=2, edges=3))

    def hessian_product(x, a, w):
        out = OP.op(x, a, w, edge_dst, edge_src, case.problem)
        first = torch.autograd.grad(out.sin().sum(), (x, a, w), create_graph=True)
        return torch.autograd.grad(
            sum(d.square().sum() for d in first), (x, a, w), create_graph=True
        )

    assert torch.autograd.gradcheck(hessian_product, floating, fast_mode=True)


OPCHECKS = [(sizes, "contiguous") for sizes in ((3, 5), (1, 1), (4, 0))]
OPCHECKS += [((3, 5), "transposed")]


@pytest.mark.parametrize(("sizes", "layout"), OPCHECKS, ids=str)
def test_opcheck_every_rung(sizes, layout):
    """Schema, fake and autograd registration; the fake must also give the strides of the result."""
    nodes, edges = sizes
    case = TINY["vectors"]
    x, a, w, edge_dst, edge_src = make_inputs(case, torch.float64, nodes, edges)
    operators = torch.ops.fastmlip
    order = operators.edge_order_cpu(edge_dst, edge_src, nodes)
    rest = (order, case.problem.tables(), case.problem.dim_out)
    grad = torch.randn(nodes, case.problem.dim_out, dtype=x.dtype)
    h = [torch.randn_like(t) for t in (x, a, w)]

    def laid_out(*tensors):
        if layout == "transposed":
            tensors = [t.T.contiguous().T for t in tensors]
        return [t.requires_grad_() for t in tensors]

    for operator, operands in (
        (operators.tensor_product_conv_cpu, laid_out(x, a, w)),
        (operators.tensor_product_conv_backward_cpu, laid_out(grad, x, a, w)),
        (operators.tensor_product_conv_double_backward_cpu, laid_out(*h, grad, x, a, w)),
    ):
        torch.library.opcheck(operator, (*operands, *rest))


# ---------------------------------------------------------------- autocast


HALF = torch.bfloat16


@pytest.mark.parametrize("dtypes", list(product((torch.float32, HALF), repeat=3)), ids=str)
def test_autocast_gives_the_dtype_of_nequips_layer_and_is_closer_to_the_truth(dtypes):
    stock_layer = pytest.importorskip("nequip.nn._tp_scatter_base").TensorProductScatter
    case = OP.cases["odd-multiplicities"]
    irreps = [Irreps(i) for i in (case.irreps_in1, case.irreps_in2, case.irreps_out)]
    stock = stock_layer(*irreps, list(case.instructions))
    ours = nn.TensorProductConv.from_problem(case.problem)
    inputs = make_inputs(case, torch.float32)
    inputs = Inputs(*(t.to(d) for t, d in zip(inputs, dtypes, strict=False)), *inputs[3:])
    truth = OP.reference(*inputs.to(torch.float64), case.problem)
    operands = leaves(inputs)
    with torch.autocast("cpu", HALF):
        got = ours(*operands)
        try:
            theirs = stock(*inputs)
        except RuntimeError:  # stock cannot take a half edge_attr with float32 features
            theirs = None
    assert got.dtype == torch.float32
    assert_close(got, truth, name="out")
    for leaf, gradient in zip(operands, torch.autograd.grad(got.sum(), operands[:3]), strict=False):
        assert gradient.dtype == leaf.dtype
        assert gradient.isfinite().all()
    if theirs is not None:
        assert theirs.dtype == got.dtype
        assert (got - truth).abs().max() < (theirs - truth).abs().max()


# ---------------------------------------------------------------- the module


def test_module_is_the_function():
    case = OP.cases["path-weights"]
    module = nn.TensorProductConv(*case.arguments())
    inputs = make_inputs(case)
    assert torch.equal(module(*inputs), OP.op(*inputs, case.problem))
    assert module.weight_numel == case.problem.weight_numel
    assert "6x0e+6x1o x 1x0e+1x1o -> 6x0e+6x1o | 3 paths | 18 weights" in repr(module)


def test_module_holds_nothing_that_a_checkpoint_would_keep():
    module = nn.TensorProductConv.from_problem(OP.cases["path-weights"].problem)
    assert not module.state_dict()
    assert not list(module.parameters())


CASTS = {
    "half and back": lambda m: m.half().float(),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "deep copy": copy.deepcopy,
}


@pytest.mark.parametrize("cast", CASTS)
def test_casting_the_module_keeps_its_coefficients(cast):
    case = OP.cases["odd-multiplicities"]
    module = CASTS[cast](nn.TensorProductConv.from_problem(case.problem))
    inputs = make_inputs(case)
    assert torch.equal(module.tables, case.problem.tables())
    assert torch.equal(module(*inputs), OP.op(*inputs, case.problem))


def test_module_survives_torch_save(tmp_path):
    case = OP.cases["path-weights"]
    module, inputs = nn.TensorProductConv.from_problem(case.problem), make_inputs(case)
    torch.save(module, tmp_path / "module.pt")
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    assert torch.equal(loaded(*inputs), module(*inputs))

"""Rows in ir_mul layout: what operators give is what they give in mul_ir, in the other order."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from fastmlip import layout, use_backend
from fastmlip.integrations.linear import FoldedLinear
from fastmlip.ops.irreps_linear import LinearProblem
from fastmlip.testing import OPERATORS, assert_close, derivatives, poison_empty

CONV = OPERATORS["tensor_product_conv"]
RADIAL = OPERATORS["radial_conv"]
LINEAR = OPERATORS["irreps_linear"]
# whole vectors of channels, parts of vectors, a block twice, blocks that nothing reads or writes
PRODUCTS = ("nequip-M-hidden", "odd-multiplicities", "repeated-irreps", "unused-blocks")

LINEAR_MAPS = (
    "nequip-M, self-connection", "odd multiplicities", "several paths to a block",
    "types and high l", "empty blocks",
)  # fmt: skip


def _reordered(operator, problem, *inputs):
    """``operator`` in ir_mul layout, of and to rows in mul_ir."""
    x = layout.to_ir_mul(inputs[0], problem.irreps_in1)
    out = operator(x, *inputs[1:], replace(problem, layout="ir_mul"))
    return layout.to_mul_ir(out, problem.irreps_out)


def _compare(got, want, name):
    for one, other in zip(got, want, strict=True):
        assert one.name == other.name
        assert_close(one.value, other.value, one.order, f"{name}: {one.name}")


def test_layouts_are_inverse_to_each_other():
    irreps = "3x0e+2x1o+0x2e+1x3o+4x1o"
    x = torch.arange(2 * 28.0).view(2, 28)
    packed = layout.to_ir_mul(x, irreps)
    assert packed[0, 3:9].tolist() == [3, 6, 4, 7, 5, 8]
    assert torch.equal(layout.to_mul_ir(packed, irreps), x)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PRODUCTS)
def test_tensor_product_conv(name, dtype, backend):
    problem = CONV.cases[name].problem
    inputs = CONV.make_inputs(CONV.cases[name])
    want = derivatives(partial(CONV.reference, problem=problem), inputs, 2)
    with use_backend(backend), poison_empty():
        got = derivatives(partial(_reordered, CONV.op, problem), inputs.to(dtype), 2)
    _compare(got, want, name)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("kind", ["own", "edge_pair", "first_row"])
def test_radial_conv(name, kind):
    case = RADIAL.cases["own weights"]
    rows = 9 if kind == "first_row" else 5
    width = 1 if kind == "first_row" else 5
    product = CONV.cases[name].problem
    described = case.problem._replace(product=product, kind=kind, width=width, rows=rows)
    inputs = RADIAL.make_inputs(case._replace(problem=described))

    def of(operator, *operands, problem=described):
        return operator(*operands, problem=problem)

    def reordered(*operands):
        return _reordered(
            lambda *all: RADIAL.op(*all[:-1], problem=described._replace(product=all[-1])),
            product, *operands,
        )  # fmt: skip

    with poison_empty():
        got = derivatives(reordered, inputs, 2)
    _compare(got, derivatives(partial(of, RADIAL.reference), inputs, 2), f"{name}, {kind}")


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", ["in", "out", "in and out"])
@pytest.mark.parametrize("name", LINEAR_MAPS)
def test_irreps_linear(name, ends, dtype, backend):
    case = LINEAR.cases[name]
    layouts = {f"layout_{end}": "ir_mul" for end in ends.split(" and ")}
    problem = replace(case.linear, **layouts)

    def reordered(x, weight, types):
        if "layout_in" in layouts:
            x = layout.to_ir_mul(x, problem.irreps_in)
        out = LINEAR.op(x, weight, types, problem=case._replace(linear=problem))
        return layout.to_mul_ir(out, problem.irreps_out) if "layout_out" in layouts else out

    inputs = LINEAR.make_inputs(case)
    want = derivatives(partial(LINEAR.reference, problem=case), inputs, 2)
    with use_backend(backend), poison_empty():
        _compare(derivatives(reordered, inputs.to(dtype), 2), want, name)


@pytest.mark.parametrize(
    "make",
    [
        lambda: replace(CONV.cases["path-weights"].problem, layout="mul"),
        lambda: LinearProblem("2x0e", "2x0e", ((0, 0),), layout_in="mul"),
        lambda: LinearProblem("2x0e", "2x0e", ((0, 0),), layout_out="mul"),
    ],
)
def test_unknown_layouts(make):
    with pytest.raises(ValueError, match=r"layout\w*: expected one of .*'mul'"):
        make()


def test_e3nns_linear_of_blocks_that_simplify_to_its_own():
    from e3nn.o3 import Irreps, Linear

    blocks = Irreps("3x0e+2x0e+4x1o+1x1o+2x1o+0x2e+5x2e")
    linear = Linear(blocks.simplify(), "6x0e+3x1o+2x2e").double()
    x = torch.randn(7, blocks.dim, dtype=torch.float64)
    fast = FoldedLinear(linear, 0.5, irreps_in=blocks, layout_in="ir_mul")
    assert_close(fast(layout.to_ir_mul(x, blocks), linear), 0.5 * linear(x), 0)
    with pytest.raises(ValueError, match="irreps_in: expected blocks that make"):
        FoldedLinear(linear, irreps_in="5x0e+7x1e+5x2e")

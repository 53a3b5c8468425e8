"""The operations that a benchmark counts for a whole model."""

import pytest
import torch

from fastmlip import ops
from fastmlip.bench import work
from fastmlip.testing import OPERATORS


def test_the_work_of_a_model_counts_products_paths_and_pairs():
    layer = OPERATORS["irreps_linear"].cases["odd multiplicities"].linear
    x, weight = torch.randn(11, layer.dim_in), torch.randn(1, layer.weight_numel)
    counted = work.count(lambda: ops.irreps_linear(x, weight, layer) @ torch.ones(layer.dim_out, 2))
    products = sum(mul_in * mul_out * dim for _, mul_in, _, mul_out, dim, _ in layer.paths)
    assert counted.flops == 2 * 11 * (products + layer.dim_out * 2)
    assert counted.moved >= 4 * 11 * (layer.dim_in + layer.dim_out)


@pytest.mark.parametrize(
    "name", ["nequip-M-hidden, network", "nequip-M-hidden, spline", "own weights"]
)
def test_the_work_of_a_convolution_is_that_of_its_paths_and_rows(name):
    operator = OPERATORS["radial_conv"]
    case = operator.cases[name]
    inputs = operator.make_inputs(case, torch.float32, edges=56)
    inputs.x.requires_grad_()

    def run():
        operator.op(*inputs, problem=case.problem).square().sum().backward()

    run()  # makes the Clebsch-Gordan coefficients, with products of their own
    counted = work.count(run)
    rows = {"edge_pair": inputs.chosen.unique().numel()}.get(case.problem.kind, 56)
    each = 6 if case.problem.kind == "first_row" else case.problem.rows
    made = each * case.problem.product.weight_numel
    made += inputs.hidden.numel() if case.problem.depth else 0
    paths = 56 * case.problem.product.flops_per_edge
    assert counted.flops == 4 * paths + 2 * (2 * rows * made)

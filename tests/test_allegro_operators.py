"""contraction and env_sum: every row against the reference, and Allegro's own modules."""

from functools import partial

import pytest
import torch

from fastmlip import ops
from fastmlip.ops.contraction import strided_problem
from fastmlip.testing import OPERATORS, assert_close, assert_same_derivatives, poison_empty

ROWS = [
    pytest.param(name, case, marks=pytest.mark.slow if case in OPERATORS[name].slow else ())
    for name in ("contraction", "env_sum")
    for case in OPERATORS[name].cases
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "case"), ROWS)
def test_all_derivatives_match_the_reference(name, case, dtype):
    """Also memory that an operator leaves unwritten is seen: it starts as NaN."""
    table = OPERATORS[name]
    row = table.cases[case]
    op, reference = (partial(f, problem=row.problem) for f in (table.op, table.reference))
    with poison_empty():
        assert_same_derivatives(op, reference, table.make_inputs(row, dtype), slack=3)


@pytest.mark.parametrize("sizes", [(0, 0), (4, 0), (1, 1), (2, 25), (3, 150)], ids=str)
def test_contraction_of_any_size(sizes):
    """No nodes, no edges, one edge, more edges of a node than are in cache together."""
    nodes, edges = sizes
    table = OPERATORS["contraction"]
    for case in ("l_max 2, first layer", "l_max 2, hidden layer", "l_max 2, last layer"):
        row = table.cases[case]
        inputs = table.make_inputs(row, torch.float64, nodes=nodes, edges=edges)
        op, reference = (partial(f, problem=row.problem) for f in (table.op, table.reference))
        with poison_empty():
            assert_same_derivatives(op, reference, inputs, order=2, slack=3)


@pytest.mark.parametrize("coupling", [True, False])
@pytest.mark.parametrize("case", ["l_max 2, last layer", "l_max 3", "both parities", "one path"])
def test_contraction_is_allegros_contracter(case, coupling):
    Contracter = pytest.importorskip("allegro.nn._strided").Contracter
    row = OPERATORS["contraction"].cases[case]
    problem, channels = row.problem, row.channels
    torch.set_default_dtype(torch.float64)
    try:
        host = Contracter(
            *(_irreps(i) for i in (row.irreps_in1, row.irreps_in2, row.irreps_out)),
            mul=channels, path_channel_coupling=coupling,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
    x = torch.randn(40, channels, problem.dim_in1, dtype=torch.float64)
    env = torch.randn(5, channels, problem.dim_in2, dtype=torch.float64)
    edge_dst = torch.randint(0, 5, (40,))
    weight = host.weights.detach().reshape(*host.weights.shape[: int(coupling)], -1)
    weight = weight.T if coupling else weight[:, None].expand(-1, channels)
    got = ops.contraction(x.mT, env.mT, weight, edge_dst, problem)
    assert_close(got, host(x, env, edge_dst).detach().mT, 1)


@pytest.mark.parametrize("individual", [True, False])
def test_env_sum_is_allegros_weighter_and_scatter(individual):
    MakeWeightedChannels = pytest.importorskip("allegro.nn._strided").MakeWeightedChannels
    host = MakeWeightedChannels(_irreps("0e+1o+2e"), 7, weight_individual_irreps=individual)
    attr = torch.randn(40, 9, dtype=torch.float64)
    weight = torch.randn(40, host.weight_numel, dtype=torch.float64)
    edge_dst = torch.randint(0, 5, (40,))
    want = attr.new_zeros(6, 7, 9).index_add(0, edge_dst, host.double()(attr, weight))
    rows = weight.view(40, 7, -1).mT
    assert_close(ops.env_sum(rows, attr, edge_dst, 6, (1, 3, 5)), want.mT, 1)


def _irreps(irreps):
    from e3nn.o3 import Irreps

    return Irreps(irreps)


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("x", torch.zeros(3, 4, 2), ValueError, r"x: expected shape \[E, 1 or 2, U\]"),
        ("env", torch.zeros(2, 3, 2), ValueError, r"env: expected shape \[N, irreps_in2.dim, U\]"),
        ("weight", torch.zeros(4, 3), ValueError, r"weight: expected shape \[paths, U\]"),
        ("weight", torch.zeros(4, 2).double(), TypeError, "weight: expected torch.float32"),
        ("edge_attr", torch.zeros(3, 3), ValueError, "edge_attr: expected shape"),
        ("edge_dst", torch.zeros(3), TypeError, "edge_dst: expected int32 or int64"),
        ("edge_dst", torch.tensor([0, 2, 0]), RuntimeError, "edge_dst"),
        ("order", torch.zeros(7, dtype=torch.int64), ValueError, "order"),
    ],
)  # fmt: skip
def test_contraction_names_a_bad_argument(argument, value, error, message):
    good = {
        "x": torch.zeros(3, 2, 2), "env": torch.zeros(2, 4, 2), "weight": torch.zeros(4, 2),
        "edge_dst": torch.zeros(3, dtype=torch.int64), "edge_attr": torch.zeros(3, 4),
        "problem": strided_problem("0e+1o", "0e+1o", "0e+1o"),
    }  # fmt: skip
    ops.contraction(**good)
    with pytest.raises(error, match=message):
        ops.contraction(**{**good, argument: value})


def test_no_channels_and_no_degrees():
    """Gradients of a sum of nothing are zero, in memory that starts as NaN."""
    problem = strided_problem("0e+1o", "0e+1o", "0e+1o")
    x, edge_attr = torch.zeros(5, 2, 0), torch.randn(5, 4, requires_grad=True)
    env, weight = torch.zeros(3, 4, 0), torch.zeros(problem.weight_numel, 0)
    dst = torch.tensor([0, 1, 2, 1, 0])
    with poison_empty():
        out = ops.contraction(x.requires_grad_(), env, weight, dst, problem, edge_attr)
        (grad,) = torch.autograd.grad(out.sum(), edge_attr)
        none = ops.env_sum(torch.zeros(5, 0, 3), torch.zeros(5, 0), dst, 3, ())
    assert torch.equal(grad, torch.zeros_like(edge_attr)) and none.shape == (3, 0, 3)

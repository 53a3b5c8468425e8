"""Tables, orders and indices with a number wrong: an error, or numbers; never a crash.

Anybody can call the C++ operators; compiled models do, without the checks of the Python pages.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastmlip.ops import edge_order
from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.testing import OPERATORS, make_inputs

SOME = ("good + 1", "-1", "2**62")
MORE = ("good - 1", "0", "1", "3", "good + 2**32", "-(2**63)", "2**63 - 1", "-good", "2 * good")
QUICK = {
    "contraction": ("both parities",),
    "env_sum": ("odd channels",),
    "scalar_mlp": ("odd",),
    "edge_embedding": ("nequip-M", "pairs-of-types"),
    "edge_vectors": (),
    "gate": (),
    "irreps_linear": (),
    "pair_linear": (),
    "radial_conv": ("network without pairs", "odd multiplicities, pairs", "one interval, spline"),
    "scale_shift": ("per type",),
    "spline": ("odd",),
    "symmetric_contraction": ("unused inputs and outputs",),
    "tensor_product_conv": ("nequip-S-hidden", "unused-blocks"),
    "zbl": ("per-type cutoffs",),
}
CASES = [
    pytest.param(operator, case, id=f"{operator}-{case}",
                 marks=() if case in QUICK[operator] or i == 0 else pytest.mark.slow)
    for operator, table in OPERATORS.items() for i, case in enumerate(table.cases)
]  # fmt: skip


def run_corrupted(operator, case, values):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("corrupted.py")), operator, case, *values],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}"
    assert "raised" in done.stdout


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_a_wrong_number_crashes_nothing(operator, case):
    run_corrupted(operator, case, SOME)


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "case"), CASES)
def test_any_wrong_number_crashes_nothing(operator, case):
    run_corrupted(operator, case, MORE)


# ---------------------------------------------------------------- what a single number cannot show

CASE = OPERATORS["tensor_product_conv"].cases["path-weights"]
PROBLEM = CASE.problem


def operands(nodes=4, edges=9):
    inputs = make_inputs(CASE, torch.float32, nodes=nodes, edges=edges)
    return inputs[:3], edge_order(inputs.edge_dst, inputs.edge_src, nodes)


def backward(operands, order, tables=None):
    grad = torch.ones(operands[0].shape[0], PROBLEM.dim_out)
    return torch.ops.fastmlip.tensor_product_conv_backward_cpu(
        grad, *operands, order, PROBLEM.tables() if tables is None else tables, PROBLEM.dim_out
    )


def test_edges_that_add_up_but_are_there_twice_are_refused():
    inputs, order = operands()
    edges = EdgeOrder(order, 4, 9).src_edge
    edges.copy_(torch.tensor([0, 0, 3, 3, 4, 5, 6, 7, 8]))  # the sum is that of all
    with pytest.raises(RuntimeError, match=r"order: .*an edge is missing"):
        backward(inputs, order)


def test_nodes_that_are_there_twice_are_refused():
    inputs, order = operands()
    parts = EdgeOrder(order, 4, 9)
    parts.node[1] = parts.node[0]
    with pytest.raises(RuntimeError, match=r"order: .*the place of a node"):
        backward(inputs, order)


def test_positions_that_wrap_around_are_refused():
    inputs, order = operands()
    EdgeOrder(order, 4, 9).src_ptr[1:4] = torch.tensor([2**62, -(2**63), -(2**62)])
    with pytest.raises(RuntimeError, match=r"order: .*positions"):
        backward(inputs, order)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_order_of_many_edges_is_checked_by_all_threads(threads):
    inputs, order = operands(nodes=2000, edges=60_000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        backward(inputs, order)
        for part, what in (("src_dst", "a node"), ("src_edge", "an edge"), ("src_ptr", "posit")):
            for place in (1, 1000, -2):
                wrong = order.clone()
                getattr(EdgeOrder(wrong, 2000, 60_000), part)[place] = 2**40
                with pytest.raises(RuntimeError, match=f"order: .*: {what}"):
                    backward(inputs, wrong)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_contiguous_is_refused():
    inputs, order = operands()
    with pytest.raises(RuntimeError, match="order: not the edge_order"):
        backward(inputs, torch.stack([order, order], 1)[:, 0])
    with pytest.raises(RuntimeError, match="order: not the edge_order"):
        backward(inputs, order[:1].expand_as(order))
    with pytest.raises(RuntimeError, match="tables: "):
        backward(inputs, order, torch.stack([PROBLEM.tables()] * 2, 1)[:, 0])


def test_sizes_that_wrap_around_are_refused():
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="num_nodes: "):
        torch.ops.fastmlip.edge_order_cpu(none, none, 2**62)
    order = torch.zeros(2, dtype=torch.int64)  # what 2^62 nodes would need, in 64 bits
    with pytest.raises(RuntimeError, match="order: not the edge_order"):
        torch.ops.fastmlip.edge_pair_cpu(torch.zeros(0, 3), torch.zeros(0, 1), order, 2**62)
    with pytest.raises(RuntimeError, match="order: not the edge_order"):
        torch.ops.fastmlip.edge_vectors_backward_cpu(torch.zeros(0, 3), order, 2**62)

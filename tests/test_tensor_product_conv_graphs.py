"""Graphs and memory layouts: every derivative, whatever the edges and strides look like."""

from functools import partial

import pytest
import torch

from fastmlip.testing import (
    OPERATORS,
    Inputs,
    assert_close,
    assert_same_derivatives,
    derivatives,
    make_inputs,
    poison_empty,
)
from fastmlip.testing.cases.tensor_product_conv import nequip_case

OP = OPERATORS["tensor_product_conv"]
CASE = OP.cases["odd-multiplicities"]
CONV, REFERENCE = (partial(f, problem=CASE.problem) for f in (OP.op, OP.reference))
DTYPES = (torch.float32, torch.float64)


def graph(nodes, edge_dst, edge_src, dtype=torch.float64):
    """Operands on the edges given."""
    inputs = make_inputs(CASE, dtype, nodes, len(edge_dst))
    return inputs._replace(edge_dst=torch.tensor(edge_dst), edge_src=torch.tensor(edge_src))


GRAPHS = {
    "unsorted": lambda: make_inputs(CASE),
    "sorted": lambda: make_inputs(CASE, sorted=True),
    "int32": lambda: make_inputs(CASE, index_dtype=torch.int32),
    "isolated nodes": lambda: graph(8, [2, 2, 6], [6, 5, 2]),
    "more rows of x than receivers": lambda: graph(9, [0, 1, 1, 0], [7, 8, 3, 4]),
    "receivers that send nothing": lambda: graph(4, [3, 2, 3], [0, 0, 0]),
    "self-images only": lambda: graph(3, [0, 1, 1, 2], [0, 1, 1, 2]),
    "one edge given thrice": lambda: graph(3, [2, 0, 2, 2], [1, 1, 1, 1]),
    "all edges at one node": lambda: graph(2, [1] * 70, [1] * 35 + [0] * 35),
    "one edge": lambda: graph(2, [1], [0]),
    "one node": lambda: make_inputs(CASE, nodes=1, edges=5),
    "no edges": lambda: make_inputs(CASE, nodes=5, edges=0),
    "no nodes": lambda: make_inputs(CASE, nodes=0, edges=0),
}


@pytest.mark.parametrize("poison", [False, True], ids=["", "poisoned memory"])
@pytest.mark.parametrize("name", GRAPHS)
def test_all_derivatives_on_any_graph(name, poison):
    inputs = GRAPHS[name]()
    expected = derivatives(REFERENCE, inputs)
    for dtype in DTYPES:
        if poison:
            with poison_empty():
                got = derivatives(CONV, inputs.to(dtype))
        else:
            got = derivatives(CONV, inputs.to(dtype))
        rounding = dtype == torch.float32  # of the inputs, which the comparison leaves out
        truth = derivatives(REFERENCE, inputs.to(dtype).to(torch.float64)) if rounding else expected
        for actual, want in zip(got, truth, strict=True):
            assert_close(actual.value, want.value, actual.order, f"{name}: {actual.name}")


def test_poisoned_memory_is_poisoned():
    with poison_empty():
        assert torch.empty(3).isnan().all()
        assert torch.zeros(3).new_empty(3).isnan().all()
        assert torch.empty_like(torch.zeros(3)).isnan().all()


@pytest.mark.slow
def test_more_than_2_to_the_31_weights():
    """Only touched pages of the zeros take memory: 8.6 GB of addresses, some MB of rows."""
    channels, edges = 2**16, 2**15 + 3
    problem = nequip_case(f"{channels}x0e", "0e", "0e").problem
    x, a = torch.randn(2, channels), torch.ones(edges, 1)
    w = torch.zeros(edges, channels)
    assert w.numel() > 2**31
    w[0], w[-1] = 1.0, 3.0
    edge_dst, edge_src = torch.zeros(2, edges, dtype=torch.int64)
    edge_dst[-1] = edge_src[0] = 1
    assert_close(OP.op(x, a, w, edge_dst, edge_src, problem), torch.stack([x[1], 3 * x[0]]))


# ---------------------------------------------------------------- memory layouts


def padded(t):  # rows with a gap between them
    return torch.nn.functional.pad(t, (3, 2), value=float("nan"))[:, 3:-2]


def transposed(t):
    return t.T.contiguous().T


def every_other(t):
    return torch.stack([t, torch.full_like(t, float("nan"))], 2).flatten(1)[:, ::2]


def offset(t):  # contiguous, but not aligned to a vector
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t)


LAYOUTS = (padded, transposed, every_other, offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_change_nothing(layout, dtype):
    inputs = make_inputs(CASE, dtype)
    strided = [layout(t) if t.is_floating_point() else t[:] for t in inputs]
    assert all(torch.equal(a, b) for a, b in zip(inputs, strided, strict=True))
    grad = torch.randn(CONV(*inputs).shape, dtype=dtype)
    results = []
    for operands, g in ((inputs, grad), (strided, layout(grad))):
        leaves = [t.requires_grad_() if t.is_floating_point() else t for t in operands]
        out = CONV(*leaves)
        first = torch.autograd.grad(out, leaves[:3], g, create_graph=True)
        h = [
            layout(torch.ones_like(d)) if operands is strided else torch.ones_like(d) for d in first
        ]
        results.append([out, *first, *torch.autograd.grad(first, leaves[:3], h)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_expanded_operands_work():
    """Stride 0: all nodes share one row of x, all edges one row of edge_attr and edge_weight."""
    full = make_inputs(CASE)
    x, a, w = (t[:1].expand_as(t) for t in full[:3])
    assert x.stride(0) == a.stride(0) == w.stride(0) == 0
    assert_same_derivatives(CONV, REFERENCE, Inputs(x, a, w, *full[3:]), order=2)
    grad = torch.ones((), dtype=x.dtype)
    leaves = [t.clone().requires_grad_() for t in full[:3]]  # .sum() hands an expanded gradient
    got = torch.autograd.grad(CONV(*leaves, *full[3:]).sum() * grad, leaves)
    want = torch.autograd.grad(REFERENCE(*leaves, *full[3:]).sum(), leaves)
    for name, actual, expected in zip("xaw", got, want, strict=True):
        assert_close(actual, expected, 1, name)


@pytest.mark.parametrize("which", ["x", "a", "w", "xa", "xw", "aw", "xaw"])
def test_gradients_of_only_some_operands(which):
    """Forces need edge_attr and edge_weight, a frozen radial network only x: same numbers each."""
    inputs = make_inputs(CASE)

    def gradients(function, wanted):
        leaves = {
            n: t.clone().requires_grad_(n in wanted) for n, t in zip("xaw", inputs, strict=False)
        }
        out = function(*leaves.values(), *inputs[3:])
        first = torch.autograd.grad(out.sin().sum(), [leaves[n] for n in wanted], create_graph=True)
        loss = sum(d.square().sum() for d in first)
        return [*first, *torch.autograd.grad(loss, [leaves[n] for n in wanted])]

    for got, want in zip(gradients(CONV, which), gradients(REFERENCE, which), strict=True):
        assert_close(got, want, 2, which)


def test_operands_are_left_alone():
    inputs = make_inputs(CASE)
    before = [t.clone() for t in inputs]
    derivatives(CONV, inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


# ---------------------------------------------------------------- determinism and locality


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_edges_changes_only_the_rounding(dtype):
    inputs = make_inputs(CASE, dtype, nodes=9, edges=300)
    shuffle = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    shuffled = Inputs(inputs.x, *(t[shuffle] for t in inputs[1:]))
    assert_close(CONV(*shuffled), CONV(*inputs), 0)


@pytest.mark.parametrize("backend_dtype", DTYPES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("operand", ["x", "edge_attr", "edge_weight"])
def test_a_bad_number_reaches_only_what_it_touches(operand, poison, backend_dtype):
    """Forward and backward; row 2 of x has neighbours 0 and 4, edge 5 is 4 <- 1."""
    edge_dst, edge_src = [0, 3, 3, 4, 1, 4, 1], [2, 3, 1, 2, 0, 1, 0]
    good = graph(6, edge_dst, edge_src, backend_dtype)
    bad = good._replace(**{operand: getattr(good, operand).clone()})
    row = {"x": 2, "edge_attr": 5, "edge_weight": 5}[operand]
    getattr(bad, operand)[row] = poison
    touched_nodes = {"x": [0, 4], "edge_attr": [4], "edge_weight": [4]}[operand]
    touched_senders = {"x": [], "edge_attr": [1], "edge_weight": [1]}[operand]
    touched_edges = {"x": [0, 3], "edge_attr": [5], "edge_weight": [5]}[operand]
    results = []
    for inputs in (good, bad):
        leaves = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
        out = CONV(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves[:3], torch.ones_like(out))])
    rows = (touched_nodes, touched_senders, touched_edges, touched_edges)
    for index, (clean, dirty, touched) in enumerate(zip(*results, rows, strict=True)):
        untouched = [i for i in range(len(clean)) if i not in touched]
        assert torch.equal(clean[untouched], dirty[untouched]), index
        own_factor = (operand, index) in (("edge_attr", 2), ("edge_weight", 3))
        if touched and not own_factor:  # a linear operand does not enter its own gradient
            assert not dirty[touched].isfinite().all(1).any(), index

"""The table of edges in receiver and sender order: C++ against the reference, and its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fastmlip import use_backend
from fastmlip.ops.edge_order import EdgeOrder, check_order, edge_order, reference

GRAPHS = {
    "unsorted": (5, [3, 0, 4, 0, 3], [1, 1, 0, 2, 4]),
    "sorted by receiver": (4, [0, 0, 1, 3], [3, 1, 0, 0]),
    "sorted by both": (4, [0, 1, 3], [0, 1, 1]),
    "descending": (4, [3, 2, 1, 0], [0, 1, 2, 3]),
    "self and double edges": (2, [1, 1, 0, 1], [1, 1, 0, 1]),
    "isolated nodes": (9, [4, 4], [6, 6]),
    "no edges": (3, [], []),
    "no nodes": (0, [], []),
    "one node": (1, [0, 0], [0, 0]),
}


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("graph", GRAPHS)
def test_order_matches_the_reference(graph, dtype, backend):
    nodes, edge_dst, edge_src = GRAPHS[graph]
    edge_dst, edge_src = torch.tensor(edge_dst, dtype=dtype), torch.tensor(edge_src, dtype=dtype)
    with use_backend(backend):
        order = edge_order(edge_dst, edge_src, nodes)
    assert order.dtype == torch.int64
    assert torch.equal(order, reference(edge_dst, edge_src, nodes))
    torch.library.opcheck(torch.ops.fastmlip.edge_order_cpu, (edge_dst, edge_src, nodes))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_order_means_what_its_page_says(data):
    nodes = data.draw(st.integers(1, 12))
    node = st.integers(0, nodes - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=40))
    if data.draw(st.booleans()):
        pairs.sort()
    edge_dst, edge_src = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    order = edge_order(edge_dst, edge_src, nodes)
    assert torch.equal(order, reference(edge_dst, edge_src, nodes))
    parts = EdgeOrder(order, nodes, len(pairs))
    assert torch.equal(parts.edge_dst(), edge_dst)
    assert torch.equal(parts.edge_src(), edge_src)
    for pointer, edges, others, near, far in (
        (parts.dst_ptr, parts.dst_edge, parts.dst_src, edge_dst, edge_src),
        (parts.src_ptr, parts.src_edge, parts.src_dst, edge_src, edge_dst),
    ):
        assert torch.equal(others, far[edges])
        for n in range(nodes):
            mine = edges[pointer[n] : pointer[n + 1]]
            assert mine.tolist() == (near == n).nonzero()[:, 0].tolist()  # in the order given


def cubes(size=16):
    """Centres of the cubes of a grid, in random order."""
    grid = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float64)] * 3)
    return grid[torch.randperm(size**3, generator=torch.Generator().manual_seed(0))]


def test_nodes_follow_one_another_in_space():
    positions = 3.5 * cubes() - 20
    nodes = torch.arange(len(positions))
    order = EdgeOrder(edge_order(nodes, nodes, len(nodes), positions), len(nodes), len(nodes))
    assert torch.equal(order.place[order.node], nodes)
    steps = positions[order.node].diff(dim=0).norm(dim=1)
    assert torch.allclose(steps, torch.tensor(3.5).double())  # a Hilbert curve never jumps


def test_few_nodes_keep_their_order():
    positions = cubes(10)
    nodes = torch.arange(len(positions))
    order = EdgeOrder(edge_order(nodes, nodes, len(nodes), positions), len(nodes), len(nodes))
    assert torch.equal(order.node, nodes)
    assert torch.equal(order.place, nodes)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_order_of_nodes_changes_nothing_else(data):
    few, more = 12, 1_000  # from more than 1,000 nodes on they are sorted
    nodes = few + more
    node = st.integers(0, few - 1) | st.integers(0, nodes - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=40))
    if data.draw(st.booleans()):
        pairs.sort()
    number = st.floats(allow_nan=True, allow_infinity=True)
    places = data.draw(st.lists(st.tuples(number, number, number), min_size=few, max_size=few))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    others = torch.randn(more, 3, generator=random, dtype=torch.float64)
    positions = torch.cat([torch.tensor(places, dtype=torch.float64), others])
    edge_dst, edge_src = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    got = EdgeOrder(edge_order(edge_dst, edge_src, nodes, positions), nodes, len(pairs))
    want = EdgeOrder(reference(edge_dst, edge_src, nodes), nodes, len(pairs))
    assert got.node.sort().values.tolist() == list(range(nodes)) == got.place[got.node].tolist()
    for i, n in enumerate(got.node.tolist()):
        for side in ("dst", "src"):
            of_node = [
                [getattr(order, f"{side}_{part}")[pointer[at] : pointer[at + 1]].tolist()
                 for part in ("edge", "src" if side == "dst" else "dst")]
                for order, at in ((got, i), (want, n))
                for pointer in [getattr(order, f"{side}_ptr")]
            ]  # fmt: skip
            assert of_node[0] == of_node[1]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_positions_of_another_shape_are_an_error(backend):
    index = torch.tensor([0, 1])
    with use_backend(backend), pytest.raises(ValueError, match=r"positions: expected shape \[N, 3"):
        edge_order(index, index, 4, torch.zeros(3, 3))
    if backend == "cpp":
        with pytest.raises(RuntimeError, match="positions: expected float64"):
            torch.ops.fastmlip.edge_order_cpu(index, index, 4, torch.zeros(4, 3))
    positions = torch.zeros(4, 3).double()
    torch.library.opcheck(torch.ops.fastmlip.edge_order_cpu, (index, index, 4, positions))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_strided_indices_are_read_as_they_are(dtype):
    index = torch.tensor([[3, 9, 0, 9, 3, 9], [1, 9, 2, 9, 0, 9]], dtype=dtype)[:, ::2]
    assert torch.equal(edge_order(*index, 4), edge_order(*index.contiguous(), 4))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("argument", ["edge_dst", "edge_src"])
def test_an_index_out_of_range_is_named_with_its_place(argument, bad, dtype):
    index = {n: torch.tensor([0, 1, 2], dtype=dtype) for n in ("edge_dst", "edge_src")}
    index[argument][1] = bad
    with use_backend("cpp"), pytest.raises(RuntimeError, match=rf"{argument}\[1\] = {bad} "):
        edge_order(**index, num_nodes=4)
    with use_backend("reference"), pytest.raises(RuntimeError, match=argument):
        edge_order(**index, num_nodes=4)


@pytest.mark.parametrize(
    ("edge_dst", "edge_src", "num_nodes", "message"),
    [
        (torch.zeros(3).long(), torch.zeros(2).long(), 1, r"edge_src: expected shape \[E = 3\]"),
        (torch.zeros(3).long(), torch.zeros(3, 1).long(), 1, r"edge_src: expected shape \[E = 3\]"),
        (torch.zeros(1, 3).long(), torch.zeros(3).long(), 1, r"edge_dst: expected shape \[E\]"),
        (torch.zeros(3).long(), torch.zeros(3).int(), 1, "int32 or int64, both the same"),
        (torch.zeros(3), torch.zeros(3), 1, "int32 or int64, both the same"),
        (torch.zeros(3).long(), torch.zeros(3).long(), -2, "num_nodes: .*got -2"),
    ],
)
def test_the_raw_operator_checks_what_it_would_read(edge_dst, edge_src, num_nodes, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastmlip.edge_order_cpu(edge_dst, edge_src, num_nodes)


class Counted(TorchDispatchMode):
    """How many operators of torch are called."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def calls(check, *operands):
    with Counted() as seen:
        check(*operands)
    return seen.calls


def test_an_order_is_read_once_unless_somebody_else_made_it_or_wrote_to_it():
    nodes, edge_dst, edge_src = GRAPHS["unsorted"]
    with use_backend("reference"):
        order = edge_order(torch.tensor(edge_dst), torch.tensor(edge_src), nodes)
    operands = (nodes, len(edge_dst), order.device)
    assert calls(check_order, order, *operands) == 0
    for other in (
        order.clone(),
        order.detach().view(-1),
        reference(*map(torch.tensor, (edge_dst, edge_src)), nodes),
    ):
        assert calls(check_order, other, *operands) > 0
    with pytest.raises(ValueError, match="order: expected int64 of shape"):
        check_order(order, nodes + 1, *operands[1:])
    EdgeOrder(order, *operands[:2]).src_dst[1] = nodes
    with pytest.raises(RuntimeError, match="order: not the edge_order"):
        check_order(order, *operands)


def test_an_order_made_without_a_count_of_writes_is_read():
    with use_backend("reference"), torch.inference_mode():
        order = edge_order(torch.tensor([0, 1]), torch.tensor([1, 0]), 2)
        assert calls(check_order, order, 2, 2, order.device) > 0

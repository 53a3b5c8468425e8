"""What radial_conv plans before its kernels begin: chunks, rows that wait, memory; and that nothing
of it shows in the bits."""

import os
import resource
from pathlib import Path

import pytest
import torch

from fastmlip import ops
from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.ops.radial_conv import reference
from fastmlip.testing import OPERATORS, assert_close

OP = OPERATORS["radial_conv"]
THREADS = (1, 2, 4, 6, 7, 8, 16, 32, 64, 128)


def groups(edges, size, seed=0):
    """edge_pair where edges come in groups, a random one of which stands for the others."""
    members = torch.randperm(edges, generator=torch.Generator().manual_seed(seed))
    members = members[: edges // size * size].view(-1, size)
    pair = torch.arange(edges)
    pair[members] = members[:, :1]
    return pair


def lattice(atoms, neighbours=30):
    """Edges between atoms of a line that stand near one another, each with its reverse; sorted by
    receiver."""
    i = torch.arange(atoms).repeat_interleave(neighbours)
    steps = torch.arange(1, neighbours // 2 + 1)
    j = (i + torch.cat([-steps, steps]).repeat(atoms)).remainder(atoms)
    code, back = i * atoms + j, j * atoms + i
    place = torch.searchsorted(code.sort().values, back)
    reverse = code.argsort()[place]
    return i, j, torch.minimum(torch.arange(len(i)), reverse)


def plan(order, pair, nodes, row_bytes, room=1 << 40, threads=1):
    """Of the backward pass."""
    numbers = torch.ops.fastmlip.radial_conv_plan_cpu(order, pair, nodes, row_bytes, room, threads)
    names = ("chunks", "edges", "blocks", "waiting", "shared", "alone")
    return dict(zip(names, numbers.tolist(), strict=True))


# ---------------------------------------------------------------- what is planned


def test_any_number_of_threads_has_blocks_to_work_on_and_shares_what_comes_before():
    nodes, row_bytes = 40_000, 4 * 1600
    edge_dst, edge_src, pair = lattice(nodes)
    order = ops.edge_order(edge_dst, edge_src, nodes)
    print("\nthreads  chunks  blocks of a chunk  waiting  of the plan not shared")
    for threads in THREADS:
        best = min((plan(order, pair, nodes, row_bytes, threads=threads) for _ in range(3)),
                   key=lambda found: found["alone"])  # fmt: skip
        share = best["alone"] / (best["alone"] + best["shared"])
        print(
            f"{threads:7} {best['chunks']:7} {best['blocks']:18} {best['waiting']:8} {share:23.2%}"
        )
        assert best["blocks"] >= 4 * threads
        assert best["edges"] * row_bytes <= max(18, 3 * threads) << 20
        if threads > 1:  # one has nobody to share with
            assert share < 0.05


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_rows_that_wait_are_counted(size, threads):
    """With rows so large that each node is a chunk."""
    nodes, edges = 300, 13_000
    random = torch.Generator().manual_seed(size)
    edge_dst, edge_src = torch.randint(0, nodes, (2, edges), generator=random)
    pair, order = groups(edges, size), ops.edge_order(edge_dst, edge_src, nodes)
    last = torch.full((edges,), -1).scatter_reduce(0, pair, edge_src, "amax")[pair]
    waits = edge_src < last
    now = [(waits & (edge_src <= n) & (last >= n)).sum().item() for n in range(nodes)]
    found = plan(order, pair, nodes, 1 << 30, threads=threads)
    assert found["chunks"] == nodes
    assert found["waiting"] == max(now)


@pytest.mark.parametrize("room", [0, 10, 100, 1000])
def test_no_more_rows_wait_than_there_is_room_for(room):
    nodes, edges = 50, 4000
    edge_dst, edge_src = torch.randint(
        0, nodes, (2, edges), generator=torch.Generator().manual_seed(0)
    )
    pair, order = groups(edges, 3), ops.edge_order(edge_dst, edge_src, nodes)
    everything = plan(order, pair, nodes, 1 << 20)
    assert everything["waiting"] > 1000 + everything["edges"]
    found = plan(order, pair, nodes, 1 << 20, room=room)
    assert found["waiting"] <= (room and room + found["edges"])


# ---------------------------------------------------------------- and shows in no bit


def results(inputs, case, pair, order=None, change_weight=False):
    """Value and gradients, the first in a graph, of edges that share rows as ``pair`` says."""
    leaves = [t.clone().requires_grad_() for t in inputs[:3]]
    operands = inputs._replace(**dict(zip(inputs._fields, leaves, strict=False)))
    named = OP.arguments(operands, case) | {"edge_pair": pair, "order": order}
    named["weight"] = named["weight"].clone()
    out = ops.radial_conv(**named)
    if change_weight:
        named["weight"].data.zero_()
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("name", ["one weight, pairs", "deep network"])
def test_neither_threads_nor_the_order_of_nodes_change_a_bit(name, size):
    case, nodes, edges = OP.cases[name], 1500, 20_000
    inputs = OP.make_inputs(case, torch.float32, nodes=nodes, edges=edges)
    pair = groups(edges, size)
    positions = torch.rand(nodes, 3, generator=torch.Generator().manual_seed(1)).double()
    orders = [ops.edge_order(inputs.edge_dst, inputs.edge_src, nodes, p) for p in (None, positions)]
    node = EdgeOrder(orders[1], nodes, edges).node
    assert not torch.equal(node, torch.arange(nodes))  # they are sorted
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found += [results(inputs, case, pair, order) for order in orders]
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kept_mib", [2048, 30, 0])
def test_chunks_and_room_for_any_number_of_threads(size, kept_mib, monkeypatch):
    """Some 120 MiB of rows: chunks of 18 to 48 MiB; with little room rows are made again, and
    gradients of edges that are far apart go back one by one."""
    monkeypatch.setitem(ops.radial_conv.__globals__, "KEPT_BYTES", kept_mib << 20)
    case = OP.cases["nequip-M-hidden, pairs"]
    numel, nodes = case.problem.product.weight_numel, 600
    edges = (120 << 20) // (8 * numel)
    inputs = OP.make_inputs(case, torch.float64, nodes=nodes, edges=edges)
    pair = groups(edges, size)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 16):
            torch.set_num_threads(threads)
            found.append(results(inputs, case, pair))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))
    leaves = [t.clone().requires_grad_() for t in inputs[:3]]
    ends = (inputs.edge_dst, inputs.edge_src)
    weight = inputs.weight.detach()
    out = reference(*leaves, weight, *ends, problem=case.problem.product, edge_pair=pair)
    for got, want in zip(
        found[0], [out, *torch.autograd.grad(out.square().sum(), leaves)], strict=True
    ):
        assert_close(got, want, 2)


# ---------------------------------------------------------------- memory


def kept_of(case, inputs, pair, room):
    named = OP.arguments(inputs, case) | {"edge_pair": pair}
    product, nodes = named["problem"], inputs.x.shape[0]
    operands = [named[k] for k in ("x", "edge_attr", "radial", "weight", "hidden")]
    operands += [pair, None, ops.edge_order(inputs.edge_dst, inputs.edge_src, nodes)]
    operands += [product.tables(), product.dim_out, product.weight_numel, room]
    return torch.ops.fastmlip.radial_conv_cpu(*operands)[1]


@pytest.mark.parametrize(("room", "rows"), [(1 << 20, 1000), (1000, 1000), (999, 0), (0, 0)])
def test_rows_are_kept_by_pairs_where_there_is_room_for_all(room, rows):
    case = OP.cases["own weights"]
    inputs = OP.make_inputs(case, nodes=10, edges=2000)
    numel = case.problem.product.weight_numel
    kept = kept_of(case, inputs, groups(2000, 2), room)
    assert kept.shape == (0, numel)
    assert kept.untyped_storage().nbytes() == rows * numel * 8


def test_a_copy_of_what_is_kept_has_the_rows_made_again():
    """As that of saved-tensor hooks which move tensors elsewhere."""
    case = OP.cases["deep network"]
    inputs, pair = OP.make_inputs(case, nodes=10, edges=200), groups(200, 2)
    want = results(inputs, case, pair)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        got = results(inputs, case, pair)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_kept_rows_reach_the_backward_pass(backend):
    """Without them it would make rows of weights that are zero by then."""
    case = OP.cases["own weights"]
    inputs, pair = OP.make_inputs(case, nodes=10, edges=200), groups(200, 2)
    want = results(inputs, case, pair)
    torch._dynamo.reset()
    product = case.problem.product
    tables = product.tables()

    def value(*operands):
        *operands, pair = operands
        out = ops.radial_conv(*operands, product, tables=tables, edge_pair=pair)
        return out.square().sum()

    function = torch.compile(value, fullgraph=True, dynamic=True, backend=backend)
    leaves = [t.clone().requires_grad_() for t in inputs[:3]]
    weight = inputs.weight.detach().clone()
    out = function(*leaves, weight, inputs.edge_dst, inputs.edge_src, pair)
    weight.data.zero_()
    for got, expected in zip(torch.autograd.grad(out, leaves)[:2], want[1:3], strict=True):
        assert_close(got, expected, 1)


def a_limit_of_address_space():
    """Both passes over pairs near one another, whose rows may just not be kept."""
    torch.set_num_threads(1)
    case = OP.cases["nequip-M-hidden, network"]
    nodes, row_bytes = 1500, 4 * case.problem.product.weight_numel
    edge_dst, edge_src, pair = lattice(nodes, 48)
    inputs = OP.make_inputs(case, torch.float32, nodes=nodes, edges=len(pair))
    inputs = inputs._replace(edge_dst=edge_dst, edge_src=edge_src)
    results(OP.make_inputs(case, torch.float32), case, torch.arange(56))
    ops.radial_conv.__globals__["KEPT_BYTES"] = (len(pair) // 2 - 1) * row_bytes
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = used + len(pair) * row_bytes * 8 // 10
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    results(inputs, case, pair)


def test_no_more_address_space_is_taken_than_is_used():
    """Less than for rows of all edges, less than for gradients of all pairs besides chunks."""
    from test_memory import in_its_own_process

    in_its_own_process(a_limit_of_address_space)

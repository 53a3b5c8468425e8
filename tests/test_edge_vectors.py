"""edge_vectors: every row of the table against the reference, and bits that do not depend on
threads."""

from functools import partial

import pytest
import torch

from fastmlip import ops, use_backend
from fastmlip.ops.edge_vectors import reference
from fastmlip.testing import OPERATORS, assert_close, derivatives, poison_empty

OP = OPERATORS["edge_vectors"]
CASE = OP.cases["in any order"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OP.cases)
def test_all_derivatives_match_the_reference(name, dtype):
    inputs = OP.make_inputs(OP.cases[name], torch.float32)
    with poison_empty():
        got = derivatives(partial(OP.op, problem=None), inputs.to(dtype), 3)
    want = derivatives(partial(OP.reference, problem=None), inputs.to(torch.float64), 3)
    for one, other in zip(got, want, strict=True):
        assert one.value.dtype == dtype
        assert_close(one.value, other.value, one.order, f"{name}: {one.name}")


@pytest.mark.parametrize("edges", [0, 1, 2, 50, 9_000])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_sizes(edges, backend):
    inputs = OP.make_inputs(CASE, edges=edges)
    with use_backend(backend):
        got = derivatives(ops.edge_vectors, inputs, 2)
    want = derivatives(reference, inputs, 2)
    for one, other in zip(got, want, strict=True):
        assert_close(one.value, other.value, 1, one.name)


def test_values_have_the_bits_of_a_difference():
    inputs = OP.make_inputs(CASE)
    assert torch.equal(ops.edge_vectors(*inputs), reference(*inputs))


def test_an_order_along_a_curve_changes_no_bit():
    positions, dst, src = OP.make_inputs(CASE, edges=20_000)
    order = ops.edge_order(dst, src, len(positions), positions)
    grad = torch.randn(20_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for given in (None, order):
        out = ops.edge_vectors(positions.requires_grad_(), dst, src, given)
        results += [out, *torch.autograd.grad(out, positions, grad)]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


def test_strides_opcheck_and_graphs():
    positions, dst, src = OP.make_inputs(CASE)
    strided = positions.t().contiguous().t(), *(i.repeat(2, 1).t()[:, 0] for i in (dst, src))
    assert torch.equal(ops.edge_vectors(*strided), ops.edge_vectors(positions, dst, src))
    order = ops.edge_order(dst, src, len(positions))
    grad = torch.randn(150, 3, dtype=torch.float64)
    for operator, operand, rows in (
        (torch.ops.fastmlip.edge_vectors_cpu, positions, 150),
        (torch.ops.fastmlip.edge_vectors_backward_cpu, grad, len(positions)),
    ):
        torch.library.opcheck(operator, (operand.clone().requires_grad_(), order, rows))
    compiled = torch.compile(
        lambda *operands: ops.edge_vectors(*operands).square().sum(),
        fullgraph=True, dynamic=True, backend="aot_eager",
    )  # fmt: skip
    for edges in (150, 0, 40):
        positions, dst, src = OP.make_inputs(CASE, edges=edges)
        positions.requires_grad_()
        got = torch.autograd.grad(compiled(positions, dst, src), positions)
        want = torch.autograd.grad(reference(positions, dst, src).square().sum(), positions)
        assert_close(got[0], want[0], 1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"positions": torch.zeros(17)}, ValueError, "positions: expected shape"),
        ({"positions": torch.zeros(17, 2)}, ValueError, "positions: expected shape"),
        ({"positions": torch.zeros(17, 3).half()}, TypeError, "positions: expected float32"),
        ({"edge_src": torch.zeros(149).long()}, ValueError, "edge_src: expected E"),
        ({"edge_src": torch.zeros(150)}, TypeError, "edge_src: expected int32 or int64"),
        ({"edge_src": torch.zeros(150).int()}, TypeError, "edge_src: expected torch.int64"),
        ({"edge_src": torch.full((150,), 17)}, RuntimeError, "edge_src"),
        ({"edge_dst": torch.full((150,), -1)}, RuntimeError, "edge_dst"),
        ({"order": torch.zeros(9).long()}, RuntimeError, "order: not the edge_order"),
    ],
)
def test_bad_arguments(changes, error, message):
    inputs = OP.make_inputs(CASE)._asdict()
    assert inputs["positions"].shape[0] == 17
    with pytest.raises(error, match=message):
        ops.edge_vectors(**(inputs | changes))

"""The CUDA branch of the operators traced without CUDA, on fake tensors of symbolic size.

Autograd needs a device to run on, so each rung of the ladder is traced by itself; that the rungs
are each other's derivatives does not depend on the device and is tested under the interpreter.
"""

import pytest
import torch
from torch._functorch.aot_autograd import aot_export_module
from torch.export import Dim
from tracing import exported_on_gpu
from tracing import values as _values

from fastmlip import backend
from fastmlip.ops.edge_order import EdgeOrder
from fastmlip.problem import clebsch_gordan
from fastmlip.testing import OPERATORS

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(backend.interpreting(), reason="the interpreter compiles nothing")
from triton.backends.compiler import GPUTarget  # noqa: E402

PROBLEM = OPERATORS["tensor_product_conv"].cases["nequip-S-hidden"].problem
NAMES = (
    "fastmlip.tensor_product_conv.default", "fastmlip.tensor_product_conv_backward.default",
    "fastmlip.tensor_product_conv_double_backward.default",
)  # fmt: skip


class Ladder(torch.nn.Module):
    """All three operators on the same operands."""

    def forward(self, x, a, w, order, grad, tables):
        op, key = torch.ops.fastmlip, PROBLEM.key
        out = op.tensor_product_conv(x, a, w, order, tables, key)
        d = op.tensor_product_conv_backward(grad, x, a, w, order, tables, key)
        dd = op.tensor_product_conv_double_backward(x, a, w, grad, x, a, w, order, tables, key)
        return out, *d, *dd


class Hopper:
    """All that torch asks of Triton's driver to see which operands a kernel writes."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def exported():
    """The ladder exported on fake cuda tensors, in float32, N, E and the length of order free."""
    clebsch_gordan.cache_clear()  # as in a fresh process, where tracing comes first
    nodes, edges, free = 7, 20, {0: Dim.DYNAMIC}
    shapes = (
        (nodes, PROBLEM.dim_in1), (edges, PROBLEM.dim_in2), (edges, PROBLEM.weight_numel),
        (nodes, PROBLEM.dim_out),
    )  # fmt: skip

    def inputs():
        x, a, w, grad = (torch.empty(shape, device="cuda") for shape in shapes)
        order = torch.empty(EdgeOrder.size(nodes, edges), device="cuda", dtype=torch.int64)
        return x, a, w, order, grad, torch.empty(9, device="cuda", dtype=torch.int64)

    return exported_on_gpu(Ladder(), inputs, (free, free, free, free, free, None))


def test_the_cuda_branch_has_the_shapes_and_dtypes_of_the_operands(exported):
    graph = exported.graph_module.graph
    assert [str(n.target) for n in graph.nodes if "fastmlip" in str(n.target)] == list(NAMES)
    x, a, w, order, _, _ = _values(n for n in graph.nodes if n.op == "placeholder")
    outputs = _values(graph.output_node().args[0])
    expected = [PROBLEM.dim_out, *(t.shape[1] for t in (x, a, w))] * 2
    assert [t.shape[1] for t in outputs] == expected
    assert all(t.dtype == torch.float32 and t.device.type == "cuda" for t in outputs)
    for i in (0, 1, 4, 5):
        assert outputs[i].shape[0] == x.shape[0], "rows of out and dx are nodes"
    for shape in (x.shape[0], a.shape[0]):
        assert isinstance(shape, torch.SymInt), "the trace fixed a size"
    assert str(order.shape[0]) == f"4*{x.shape[0]} + 4*{a.shape[0]} + 2"


def test_compilers_see_the_kernels_and_that_they_write_their_results_only(exported, monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    fakes = _values(n for n in exported.graph_module.graph.nodes if n.op == "placeholder")
    with fakes[0].fake_mode:
        graph_module, _ = aot_export_module(Ladder(), fakes, trace_joint=False)
    launches = [n for n in graph_module.graph.nodes if "triton_kernel" in str(n.target)]
    written = [set(n.kwargs["tensors_to_clone"]) for n in launches]
    assert written == 2 * ([{"out"}] * 2 + [{"dx", "da", "dw"}] * 2)
    rows = [grid[0] for n in launches for grid in n.kwargs["grid"]]
    assert all(isinstance(row, torch.fx.Node) for row in rows), "a grid of fixed size"
    assert not [n for n in graph_module.graph.nodes if "_local_scalar_dense" in str(n.target)]

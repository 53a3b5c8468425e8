"""torch.compile, NequIP's way of compiling a force loss, and AOTInductor packages."""

from functools import partial

import pytest
import torch
from tracing import traced

from fastmlip import nn
from fastmlip.testing import OPERATORS, Inputs, assert_close, make_inputs
from fastmlip.testing.process import run_python

OP = OPERATORS["tensor_product_conv"]
CASE = OP.cases["path-weights"]
SIZES = [(5, 31), (9, 64), (2, 3)]  # nodes, edges


@pytest.fixture(autouse=True, scope="module")
def no_caches():
    """A cached graph of an older formula can hide that this one is wrong."""
    with torch.compiler.config.patch(force_disable_caches=True):
        yield


def leaves(inputs):
    return [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]


class Layer(torch.nn.Module):
    """A convolution that reads the inputs themselves, an energy of it, and its forces.

    No pointwise function of an input: AOTInductor's own loops read inputs by the strides that they
    were traced with, so only operators are right for others.
    """

    def __init__(self, reference=False):
        super().__init__()
        module = nn.TensorProductConv.from_problem(CASE.problem)
        self.conv = partial(OP.reference, problem=CASE.problem) if reference else module

    def energies(self, x, edge_attr, edge_weight, edge_dst, edge_src):
        return self.conv(x, edge_attr, edge_weight, edge_dst, edge_src).cos().sum(1)

    def forward(self, x, edge_attr, edge_weight, edge_dst, edge_src):
        edge_attr = edge_attr.detach().requires_grad_()
        energies = self.energies(x, edge_attr, edge_weight, edge_dst, edge_src)
        forces = torch.autograd.grad(energies.sum(), edge_attr, create_graph=True)[0]
        return energies, forces


def loss_gradients(function, inputs):
    """A force loss, its value and the gradients that train with it."""
    operands = leaves(inputs)
    energies, forces = function(*operands)
    loss = energies.square().sum() + (forces - 0.3).square().sum()
    return [energies, forces, *torch.autograd.grad(loss, (operands[0], operands[2]))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_forward_and_backward_match(dtype):
    compiled = torch.compile(Layer().energies, fullgraph=True, dynamic=True)
    for nodes, edges in SIZES:
        inputs = make_inputs(CASE, dtype, nodes, edges)
        results = []
        for function, operands in (
            (compiled, inputs),
            (Layer(True).energies, inputs.to(torch.float64)),
        ):
            operands = leaves(operands)
            out = function(*operands)
            results.append([out, *torch.autograd.grad(out.square().sum(), operands[:3])])
        for order, (got, want) in enumerate(zip(*results, strict=True)):
            assert_close(got, want, min(order, 1), f"{nodes} nodes, result {order}")


def trace(inputs):
    return traced(Layer(), leaves(inputs))


def test_a_traced_graph_does_not_depend_on_the_sizes_it_was_traced_with():
    codes = {trace(make_inputs(CASE, torch.float32, *size)).code for size in SIZES}
    assert len(codes) == 1
    code = codes.pop()
    assert "tensor_product_conv" in code
    assert "index_add" not in code  # the reference is not what was traced


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_force_loss_trains_through_a_compiled_graph(dtype):
    """Second derivatives inside the graph, third through its backward: as nequip-train compiles."""
    compiled = torch.compile(trace(make_inputs(CASE, dtype, *SIZES[0])), dynamic=True)
    for nodes, edges in SIZES:
        inputs = make_inputs(CASE, dtype, nodes, edges, seed=nodes)
        got = loss_gradients(compiled, inputs)
        want = loss_gradients(Layer(True), inputs.to(torch.float64))
        for order, actual, expected in zip((0, 1, 2, 2), got, want, strict=True):
            assert_close(actual, expected, order, f"{nodes} nodes, order {order}")


# ---------------------------------------------------------------- AOTInductor


EXPORT_SIZES = [(7, 40), (3, 0), (1, 4), (1, 0), (200, 999)]
LOAD = """
    import sys, torch
    {load}
    package = torch._inductor.aoti_load_package(sys.argv[1])
    results = [package(*inputs) for inputs in torch.load(sys.argv[2])]
    assert ("fastmlip" in sys.modules) == ({load!r} == "import fastmlip")
    torch.save(results, sys.argv[3])
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Energies and forces, exported with dynamic N and E; and inputs with plain and odd strides."""
    folder = tmp_path_factory.mktemp("aoti")
    nodes, edges = torch.export.Dim("nodes"), torch.export.Dim("edges")
    dynamic = [{0: nodes}, *[{0: edges}] * 4]
    graph = trace(make_inputs(CASE, torch.float32, 6, 30))
    sample = tuple(make_inputs(CASE, torch.float32, 6, 30))
    exported = torch.export.export(graph, sample, dynamic_shapes=dynamic)
    path = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(folder / "model.pt2")
    )
    inputs = [make_inputs(CASE, torch.float32, *size, seed=3) for size in EXPORT_SIZES]
    strided = [t.T.contiguous().T if t.is_floating_point() else t for t in inputs[0]]
    index = torch.stack([*inputs[0][3:], inputs[0][3]], 1).T  # rows of a transposed edge_index
    inputs.append(Inputs(*strided[:3], index[0], index[1]))
    assert inputs[-1].x.stride(0) == inputs[-1].edge_attr.stride(0) == 1
    assert inputs[-1].edge_dst.stride(0) == 3
    torch.save([tuple(i) for i in inputs], folder / "inputs.pt")
    return path, inputs, folder


@pytest.mark.parametrize("load", ["the package", "only the library"])
def test_an_exported_package_runs_in_a_fresh_process(package, load):
    path, inputs, folder = package
    statement = "import fastmlip"
    if load == "only the library":
        (library,) = (p for p in torch.ops.loaded_libraries if "_C" in p and "fastmlip" in p)
        statement = f"torch.ops.load_library({library!r})"
    results = folder / f"{load}.pt"
    run_python(LOAD.format(load=statement), path, str(folder / "inputs.pt"), str(results))
    for operands, got in zip(inputs, torch.load(results), strict=True):
        want = Layer(True)(*operands.to(torch.float64))
        for order, (actual, expected) in enumerate(zip(got, want, strict=True)):
            assert_close(actual, expected, order, f"{tuple(operands.x.shape)}, order {order}")

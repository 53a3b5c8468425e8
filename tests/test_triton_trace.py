"""The CUDA branch of the operators traced without CUDA, on fake tensors of symbolic size, and what
torch.compile makes of it."""

import pytest
import torch
from gpu_rungs import OF_TERMS, RUNGS, WRITTEN, Ladder
from tracing import values

from fastmlip import backend
from fastmlip.testing import OPERATORS
from fastmlip.testing.process import run_python

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(backend.interpreting(), reason="the interpreter compiles nothing")
import inductor  # noqa: E402
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table  # noqa: E402

PROBLEM = OPERATORS["tensor_product_conv"].cases["nequip-S-hidden"].problem


@pytest.fixture(scope="module", params=RUNGS)
def exported(request):
    """``(ladder, program)`` of an operator, the numbers of nodes and edges free."""
    rungs = RUNGS[request.param]()
    return Ladder(rungs.call), rungs.exported()


def launches(graph):
    return [n for n in graph.nodes if "triton_kernel" in str(n.target)]


@pytest.mark.parametrize("exported", ["tensor_product_conv"], indirect=True)
def test_the_cuda_branch_has_the_shapes_and_dtypes_of_the_operands(exported):
    graph = exported[1].graph
    x, a, w, order, _, _ = values(n for n in graph.nodes if n.op == "placeholder")
    outputs = values(graph.output_node().args[0])
    expected = [PROBLEM.dim_out, *(t.shape[1] for t in (x, a, w))] * 2
    assert [t.shape[1] for t in outputs] == expected
    assert all(t.dtype == torch.float32 and t.device.type == "cuda" for t in outputs)
    for i in (0, 1, 4, 5):
        assert outputs[i].shape[0] == x.shape[0], "rows of out and dx are nodes"
    for shape in (x.shape[0], a.shape[0]):
        assert isinstance(shape, torch.SymInt), "the trace fixed a size"
    assert str(order.shape[0]) == f"4*{x.shape[0]} + 4*{a.shape[0]} + 2"


@pytest.mark.parametrize("exported", ["edge_embedding"], indirect=True)
def test_the_cuda_branch_of_edge_embedding_has_the_shapes_and_dtypes_of_its_page(exported):
    outputs = values(exported[1].graph.output_node().args[0])
    columns = [1, 1, 9, 8, 1]
    assert [t.shape[-1] for t in outputs] == [*columns, 3, 8, *columns, 3, 8]
    assert all(t.device.type == "cuda" for t in outputs)
    assert outputs[6].shape == (1, 8) and outputs[2].dtype == torch.float32
    assert isinstance(outputs[0].shape[0], torch.SymInt), "the trace fixed a size"


def test_compilers_see_the_kernels_and_that_they_write_their_results_only(exported):
    with inductor.hopper():
        graph_module, _ = inductor.graph(exported[1], exported[0])
    found = launches(graph_module.graph)
    assert found, "no launch in the graph"
    for launch in found:
        arguments = launch.kwargs
        name = kernel_side_table.get_kernel(arguments["kernel_idx"]).fn.__name__
        constants = kernel_side_table.get_constant_args(arguments["constant_args_idx"])
        given = {n for n, v in {**constants, **arguments["kwargs"]}.items() if v is not None}
        written = set(arguments["tensors_to_clone"])
        assert written == WRITTEN[name] & given, name
        for grid in arguments["grid"]:
            if name not in OF_TERMS:
                assert isinstance(grid[0], torch.fx.Node), f"{name}: a grid of fixed size"
    assert not [n for n in graph_module.graph.nodes if "_local_scalar_dense" in str(n.target)]


def test_the_source_that_inductor_writes_compiles(exported, tmp_path):
    """It has the functions and constants that a kernel uses, and no module."""
    with inductor.hopper():
        graph_module, fakes = inductor.graph(exported[1], exported[0])
        expected = len(launches(graph_module.graph))
    found = inductor.emitted(graph_module, fakes)
    assert 0 < len(found) <= expected
    for number, (name, source) in enumerate(found):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert inductor.compiled(name, source, folder).asm["cubin"]


def test_an_emitted_source_that_lacks_a_name_is_seen(tmp_path):
    rungs = RUNGS["scale_shift"]()
    with inductor.hopper():
        graph_module, fakes = inductor.graph(rungs.exported(), Ladder(rungs.call))
    found = inductor.emitted(graph_module, fakes)
    name, source = next((name, source) for name, source in found if "def _at_type" in source)
    with pytest.raises(Exception, match="_at_type"):
        inductor.compiled(name, source.replace("def _at_type", "def elsewhere"), tmp_path)


@pytest.mark.parametrize("operator", RUNGS)
def test_a_trace_may_come_first_in_a_process(operator):
    """Coefficients are made while tracing, as numbers."""
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from gpu_rungs import RUNGS
        print(len(list(RUNGS[sys.argv[2]]().exported().graph.nodes)) > 0)
    """
    folder = __file__.rpartition("/")[0]
    assert run_python(code, folder, operator).strip() == "True"

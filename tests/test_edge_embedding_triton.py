"""GPU kernel of edge_embedding: its numbers under Triton's interpreter, and its trace.

``TRITON_INTERPRET`` is read when kernels are defined, so the numbers are checked in a process of
their own: without the variable this file starts itself again with it.
"""

from functools import partial

import pytest
import torch
from torch.export import Dim
from tracing import exported_on_gpu, values

from fastmlip import backend
from fastmlip.ops import edge_embedding
from fastmlip.spherical_harmonics import tables
from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty
from fastmlip.testing.process import run_interpreted

triton = pytest.importorskip("triton")
OP = OPERATORS["edge_embedding"]

if not backend.interpreting():

    def test_the_kernel_matches_the_reference_under_the_interpreter():
        run_interpreted(__file__)

    @pytest.mark.slow
    def test_more_cases_match_the_reference_under_the_interpreter():
        run_interpreted(__file__, "slow")

    class Ladder(torch.nn.Module):
        def forward(self, vec, roots, recip, types, table):
            op, rest = torch.ops.fastmlip, (2, 6, 0.3, True)
            operands = (vec, roots, recip, types, table, *rest)
            values = op.edge_embedding(*operands)
            some = (None, None, values[2], values[3], None)
            d = op.edge_embedding_backward(*some, *operands)
            return *values, *d, *op.edge_embedding_double_backward(vec, roots, *some, *operands)

    def test_the_cuda_branch_traces_with_any_number_of_edges():
        def inputs():
            vec, roots, recip = (
                torch.empty(shape, device="cuda", dtype=torch.float64)
                for shape in ((20, 3), (1, 8), (4,))
            )
            types = torch.empty(2, 20, device="cuda", dtype=torch.int64)
            return vec, roots, recip, types, torch.empty(size, device="cuda", dtype=torch.int64)

        size = len(tables(2))
        sizes = ({0: Dim.DYNAMIC}, None, None, {1: Dim.DYNAMIC}, None)
        program = exported_on_gpu(Ladder(), inputs, sizes)
        outputs = values(program.graph_module.graph.output_node().args[0])
        columns = [1, 1, 9, 8, 1]
        assert [t.shape[-1] for t in outputs] == [*columns, 3, 8, *columns, 3, 8]
        assert all(t.device.type == "cuda" for t in outputs)
        assert outputs[6].shape == (1, 8) and outputs[2].dtype == torch.float32
        assert isinstance(outputs[0].shape[0], torch.SymInt), "the trace fixed a size"

else:

    def check(name, dtype=torch.float64, edges=131, order=2):
        case = OP.cases[name]
        op, reference = (partial(f, problem=case) for f in (OP.op, OP.reference))
        with backend.use_backend("triton"), poison_empty():
            assert_same_derivatives(op, reference, OP.make_inputs(case, dtype, edges), order)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("name", ["nequip-M", "pairs-of-types"])
    def test_all_derivatives(name, dtype):
        check(name, dtype)

    @pytest.mark.parametrize("name", ["one-root", "allegro-radial", "harmonics"])
    def test_parts_that_are_missing(name):
        check(name, edges=5, order=3)

    @pytest.mark.parametrize("bad", [-1, 4, 2**40])
    @pytest.mark.parametrize("end", [0, 1])
    def test_a_type_out_of_range_is_refused(end, bad):
        case = OP.cases["pairs-of-types"]
        inputs = OP.make_inputs(case, torch.float64, 40)
        inputs.edge_type[end, 7] = bad
        with backend.use_backend("triton"), pytest.raises(RuntimeError, match="edge_type: "):
            OP.op(*inputs, problem=case)

    def test_a_table_of_another_degree_is_refused():
        vec, one = torch.ones(4, 3).double(), torch.ones(1).double()
        with backend.use_backend("triton"), pytest.raises(RuntimeError, match="tables: "):
            edge_embedding(vec, one, one, l_max=2, tables=tables(1))

    @pytest.mark.parametrize("edges", [0, 1, 64, 65])
    def test_any_number_of_edges(edges):
        check("nequip-S", edges=edges)

    def test_an_edge_without_length_is_finite():
        case = OP.cases["nequip-S"]
        vec, roots, types = OP.make_inputs(case, edges=3)
        vec[1] = 0
        vec.requires_grad_()
        with backend.use_backend("triton"):
            out = OP.op(vec, roots, types, problem=case)
            (slope,) = torch.autograd.grad(out.sum(), vec, create_graph=True)
            (second,) = torch.autograd.grad(slope.square().sum(), vec)
        assert out.isfinite().all() and slope.isfinite().all() and second.isfinite().all()
        assert (slope[1] == 0).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", OP.cases)
    def test_every_case(name):
        check(name)

"""GPU kernel of edge_embedding in numbers, under Triton's interpreter.

``TRITON_INTERPRET`` is read when kernels are defined, so the numbers are checked in a process of
their own: without the variable this file starts itself again with it.
"""

from functools import partial

import pytest
import torch

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

    def test_degrees_that_take_several_launches():
        check("odd", edges=5)

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

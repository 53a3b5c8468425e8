"""symmetric_contraction in Triton under its interpreter.

``TRITON_INTERPRET`` is read when kernels are defined, so without it this file starts itself again
in a process of its own.
"""

import pytest
import torch

from fastmlip import backend, ops
from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty
from fastmlip.testing.process import run_interpreted

pytest.importorskip("triton")
OP = OPERATORS["symmetric_contraction"]
NAME = "unused inputs and outputs"


def check(name, dtype=torch.float64, order=2, **sizes):
    """The operator against its reference, in memory that starts as NaN."""
    inputs = OP.make_inputs(OP.cases[name], dtype, **sizes)
    with backend.use_backend("triton"), poison_empty():
        assert_same_derivatives(*OP.functions(name), inputs, order)


if not backend.interpreting():

    def test_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__)

    @pytest.mark.slow
    def test_more_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__, "slow")

else:

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("name", [NAME, "one channel", "no terms"])
    def test_up_to_second_derivatives(name, dtype):
        check(name, dtype, nodes=5)

    def test_up_to_third_derivatives():
        check(NAME, order=3, nodes=2)

    @pytest.mark.parametrize(("nodes", "ghosts"), [(0, 0), (1, 2), (9, 1)])
    def test_any_number_of_nodes(nodes, ghosts):
        check(NAME, nodes=nodes, ghosts=ghosts)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["l_max 1", "squares", "a type for each node", "mace small"])
    def test_more_cases(name):
        check(name, nodes=3)

    @pytest.mark.parametrize("wrong", [4, -1])
    def test_a_type_out_of_range_is_an_error(wrong):
        case = OP.cases[NAME]
        operands = OP.arguments(OP.make_inputs(case, nodes=3), case)
        operands["types"][1] = wrong
        with backend.use_backend("triton"), pytest.raises(RuntimeError, match="types: "):
            ops.symmetric_contraction(**operands)

    def test_the_same_bits_in_every_run():
        case = OP.cases[NAME]
        inputs = OP.make_inputs(case, torch.float32, nodes=9)
        with backend.use_backend("triton"):
            runs = [OP.op(*inputs, case.problem) for _ in range(2)]
        assert torch.equal(*runs)

"""GPU kernels of scale_shift, without a GPU: numbers under the interpreter, traces.

``TRITON_INTERPRET`` is read when kernels are defined, so the numbers are checked in a process of
their own: without the variable this file starts itself again with it.
"""

from functools import partial

import pytest
import torch
from torch.export import Dim
from tracing import exported_on_gpu, values

from fastmlip import backend, use_backend
from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty
from fastmlip.testing.process import run_interpreted

pytest.importorskip("triton")
OP = OPERATORS["scale_shift"]
DTYPES = (torch.float32, torch.float64)

if backend.interpreting():

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", OP.cases)
    def test_all_derivatives_match_the_reference(name, dtype):
        case = OP.cases[name]
        op, reference = (partial(f, problem=case.problem) for f in (OP.op, OP.reference))
        with use_backend("triton"), poison_empty():
            assert_same_derivatives(op, reference, OP.make_inputs(case, dtype, ghosts=2))

    @pytest.mark.parametrize("atoms", [0, 1, 1024, 1025, 2500])
    @pytest.mark.parametrize("name", ["per type", "one value"])
    def test_any_number_of_atoms(name, atoms):
        case = OP.cases[name]
        op, reference = (partial(f, problem=case.problem) for f in (OP.op, OP.reference))
        inputs = OP.make_inputs(case, torch.float32, atoms, index_dtype=torch.int32)
        with use_backend("triton"), poison_empty():
            assert_same_derivatives(op, reference, inputs, order=2)

    def test_an_energy_of_zero_gives_the_shift_to_the_bit():
        case = OP.cases["per type"]
        inputs = OP.make_inputs(case, torch.float32)
        with use_backend("triton"):
            out = OP.op(inputs.x.zero_(), *inputs[1:], case.problem)
        assert torch.equal(out, inputs.shifts[inputs.types])

    @pytest.mark.parametrize("bad", [-1, 5])
    def test_a_type_out_of_range_gives_nan_there_and_only_there(bad):
        case = OP.cases["per type"]
        inputs = OP.make_inputs(case, torch.float32)
        inputs.types[7] = bad
        with use_backend("triton"):
            out = OP.op(*inputs, case.problem).flatten()
        assert out.isnan().nonzero().flatten().tolist() == [7]

    def test_too_few_types_are_refused():
        case = OP.cases["per type"]
        inputs = OP.make_inputs(case)
        short = inputs._replace(types=inputs.types[:9])
        with use_backend("triton"), pytest.raises(RuntimeError, match=r"N = 37 entries, got 9"):
            OP.op(*short, case.problem)

    @pytest.mark.parametrize(("scales", "shifts"), [(5, 4), (4, 5), (5, 0), (0, 1)])
    def test_scales_and_shifts_of_other_numbers_are_refused(scales, shifts):
        case = OP.cases["per type"]
        inputs = OP.make_inputs(case)
        operands = (torch.ones(n, 1, dtype=torch.float64) for n in (scales, shifts))
        with use_backend("triton"), pytest.raises(ValueError, match=r"(scales|shifts): expected"):
            OP.op(*inputs[:2], *operands, case.problem)

    @pytest.mark.parametrize(("scales", "shifts"), [(5, 4), (4, 5)])
    def test_the_operator_by_itself_reads_no_further_than_either_table(scales, shifts):
        """A compiled model calls it without the checks of Python."""
        inputs = OP.make_inputs(OP.cases["per type"])
        operands = (torch.ones(n, 1, dtype=torch.float64) for n in (scales, shifts))
        with use_backend("triton"), pytest.raises(RuntimeError, match="shifts: expected as many"):
            torch.ops.fastmlip.scale_shift(*inputs[:2], *operands, False)

else:

    def test_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__)

    @pytest.mark.parametrize("name", ["per type", "one value"])
    def test_the_cuda_branch_is_traced_with_free_sizes(name):
        """Each rung by itself: autograd needs a device to run on."""
        number = OP.cases[name].num_scales

        class Ladder(torch.nn.Module):
            def forward(self, x, grad, types, scales, shifts):
                op = torch.ops.fastmlip
                sums = op.scale_shift_sums(grad, x, types, scales.shape[0])
                return (
                    op.scale_shift(x, types, scales, shifts, False),
                    op.scale_shift(grad, types, scales, None, True),
                    *sums,
                )

        def inputs():
            x = torch.empty(7, 1, device="cuda")
            types = torch.empty(9, device="cuda", dtype=torch.int64)
            values = [torch.empty(number, 1, device="cuda", dtype=torch.float64) for _ in "ab"]
            return x, x.double(), types, *values

        free = {0: Dim.DYNAMIC}
        exported = exported_on_gpu(Ladder(), inputs, (free, free, free, None, None))
        out, dx, *sums = values(exported.graph_module.graph.output_node().args[0])
        assert isinstance(out.shape[0], torch.SymInt) and out.device.type == "cuda"
        assert (out.dtype, dx.dtype) == (torch.float64, torch.float32)
        assert [tuple(t.shape) for t in sums] == [(number, 1)] * 2

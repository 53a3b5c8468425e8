"""GPU kernels of scale_shift, without a GPU: numbers under the interpreter, code, traces.

``TRITON_INTERPRET`` is read when kernels are defined, so the numbers are checked in a process of
their own: without the variable this file starts itself again with it.
"""

import os
import re
import subprocess
import sys
from functools import partial

import pytest
import torch

from fastmlip import backend, use_backend
from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("fastmlip.kernels.scale_shift")
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

else:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    TYPES = {torch.float32: "*fp32", torch.float64: "*fp64"}
    TYPES |= {torch.int64: "*i64", torch.int32: "*i32"}

    def test_kernels_match_the_reference_under_the_interpreter():
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", __file__],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def launched(case, dtype, monkeypatch):
        """The launches of the forward pass, its gradient and the sums, on meta tensors."""
        calls = []
        monkeypatch.setattr(
            kernels, "_run", lambda kernel, grid, *a, **c: calls.append((kernel, a, c))
        )
        inputs = OP.make_inputs(case, dtype)
        x, types, *values = (t.to("meta") for t in inputs)
        values = [v if there else None for v, there in zip(values, case.problem, strict=True)]
        grad = x.double()
        kernels.apply(x, types, *values, False)
        kernels.apply(grad, types, values[0], None, dtype is torch.float32)
        kernels.sums(grad, x, types, case.num_types)
        return calls

    def compiled(kernel, operands, constants, target):
        constexprs = dict(constants)
        names = kernel.arg_names
        signature, attributes = dict.fromkeys(names, "constexpr"), {}
        for position, (name, value) in enumerate(zip(names, operands, strict=False)):
            if value is None:
                constexprs[name] = None
            elif isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype]
                attributes[(position,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "i32"
        at = {(names.index(name),): value for name, value in constexprs.items()}
        source = ASTSource(kernel, signature, constexprs=at, attrs=attributes)
        return triton.compile(source, target=target)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", ["per type", "one value", "shifts only"])
    @pytest.mark.parametrize(
        ("assembly", "target"),
        [("ptx", GPUTarget("cuda", 90, 32)), ("amdgcn", GPUTarget("hip", "gfx942", 64))],
    )
    def test_kernels_compile_without_atomics_or_32_bit_offsets(
        name, dtype, assembly, target, monkeypatch
    ):
        for kernel, operands, constants in launched(OP.cases[name], dtype, monkeypatch):
            code = compiled(kernel, operands, constants, target)
            assert not re.search(r"\b(atom|red)\.|_atomic_", code.asm[assembly])
            assert not re.findall(r"arith\.muli .*: i32", code.asm["ttir"])
            wide = r"(fma|add|mul|cvt).*\.f64" if assembly == "ptx" else r"v_.*_f64"
            if None not in operands:  # a cast alone has no arithmetic
                assert re.search(wide, code.asm[assembly]), "the arithmetic is not float64"

    @pytest.mark.parametrize("name", ["per type", "one value"])
    def test_the_cuda_branch_is_traced_with_free_sizes(name, monkeypatch):
        """Each rung by itself: autograd needs a device to run on."""
        from torch._subclasses import FakeTensorMode
        from torch.export import Dim, export

        monkeypatch.setattr(backend, "triton_missing", lambda: None)

        class Ladder(torch.nn.Module):
            def forward(self, x, grad, types, scales, shifts):
                op = torch.ops.fastmlip
                sums = op.scale_shift_sums(grad, x, types, scales.shape[0])
                return (
                    op.scale_shift(x, types, scales, shifts, False),
                    op.scale_shift(grad, types, scales, None, True),
                    *sums,
                )

        with FakeTensorMode():
            x = torch.empty(7, 1, device="cuda")
            types = torch.empty(9, device="cuda", dtype=torch.int64)
            number = OP.cases[name].num_scales
            values = [torch.empty(number, 1, device="cuda", dtype=torch.float64) for _ in "ab"]
            free = {0: Dim.DYNAMIC}
            exported = export(
                Ladder(),
                (x, x.double(), types, *values),
                dynamic_shapes=(free, free, free, None, None),
            )
        out, dx, *sums = [n.meta["val"] for n in exported.graph_module.graph.output_node().args[0]]
        assert isinstance(out.shape[0], torch.SymInt) and out.device.type == "cuda"
        assert (out.dtype, dx.dtype) == (torch.float64, torch.float32)
        assert [tuple(t.shape) for t in sums] == [(number, 1)] * 2

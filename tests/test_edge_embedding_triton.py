"""GPU kernel of edge_embedding: its numbers under Triton's interpreter, and compiled without a GPU.

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

from fastmlip import backend
from fastmlip.spherical_harmonics import tables
from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty

triton = pytest.importorskip("triton")
OP = OPERATORS["edge_embedding"]

if not backend.interpreting():
    from torch._subclasses import FakeTensorMode
    from torch.export import Dim, export
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastmlip.kernels import edge_embedding as kernels

    TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
    TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64", int: "i64"}

    def run_here(marker):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--durations=5", __file__, "-m", marker],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_the_kernel_matches_the_reference_under_the_interpreter():
        run_here("not slow")

    @pytest.mark.slow
    def test_more_cases_match_the_reference_under_the_interpreter():
        run_here("slow")

    def launches(case, single, monkeypatch):
        """The launches of forward, backward and double backward, on meta tensors."""
        calls = []
        monkeypatch.setattr(
            kernels, "_run", lambda kernel, grid, *a, **c: calls.append((kernel, grid, a, c))
        )
        wide, dtype = torch.float64, torch.float32 if single else torch.float64

        def rows(*shape, dtype=wide):
            return torch.empty(shape, device="meta", dtype=dtype)

        vec, roots = rows(300, 3), rows(case.num_bessels)
        types = rows(2, 300, dtype=torch.int64) if case.types else None
        table = tables(case.l_max).to("meta")
        operands = (vec, roots, rows(max(case.types, 1) ** 2), types, table, case.l_max, case.p,
                    case.factor, single)  # fmt: skip
        gradients = (None, None, rows(300, (case.l_max + 1) ** 2, dtype=dtype),
                     rows(300, case.num_bessels, dtype=dtype), None)  # fmt: skip
        kernels.forward(*operands)
        kernels.backward(gradients, *operands)
        kernels.double_backward((vec, roots), gradients, *operands)
        return calls

    def compiled(kernel, grid, operands, constants, target):
        names, constexprs = kernel.arg_names, dict(constants)
        signature = dict.fromkeys(names, "constexpr")
        for name, value in zip(names, operands, strict=False):
            if value is None:
                constexprs[name] = None
            else:
                kind = value.dtype if isinstance(value, torch.Tensor) else type(value)
                signature[name] = TYPES[kind]
        at = {(names.index(name),): value for name, value in constexprs.items()}
        source = ASTSource(kernel, signature, constexprs=at)
        return triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 1})

    @pytest.mark.parametrize(
        ("name", "target", "single"),
        [
            ("nequip-M", "sm_90", True),
            pytest.param("pairs-of-types", "sm_90", False, marks=pytest.mark.slow),
            pytest.param("nequip-L", "sm_90", True, marks=pytest.mark.slow),
            pytest.param("nequip-M", "gfx942", True, marks=pytest.mark.slow),
        ],
    )
    def test_it_compiles_ahead_of_time(name, target, single, monkeypatch, record_property):
        calls = launches(OP.cases[name], single, monkeypatch)
        assert [grid for _, grid, *_ in calls] == [(3,)] * 3, "a thread for each edge"
        for call in calls:
            code = compiled(*call, TARGETS[target])
            assembly = code.asm["ptx" if "ptx" in code.asm else "amdgcn"]
            assert not re.search(r"\b(atom|red)\.|_atomic_", assembly)
            assert "local" not in assembly or "ptx" not in code.asm, "memory of a thread spilled"
            if "ptx" in code.asm:
                narrow = re.findall(r"(?:add|mul|fma)\.(?:rn\.)?f32", assembly)
                assert not narrow, "all arithmetic is in float64"

    class Ladder(torch.nn.Module):
        def forward(self, vec, roots, recip, types, table):
            op, rest = torch.ops.fastmlip, (2, 6, 0.3, True)
            operands = (vec, roots, recip, types, table, *rest)
            values = op.edge_embedding(*operands)
            some = (None, None, values[2], values[3], None)
            d = op.edge_embedding_backward(*some, *operands)
            return *values, *d, *op.edge_embedding_double_backward(vec, roots, *some, *operands)

    def test_the_cuda_branch_traces_with_any_number_of_edges(monkeypatch):
        monkeypatch.setattr(backend, "triton_missing", lambda: None)
        with FakeTensorMode():
            vec, roots, recip = (
                torch.empty(shape, device="cuda", dtype=torch.float64)
                for shape in ((20, 3), (1, 8), (4,))
            )
            types = torch.empty(2, 20, device="cuda", dtype=torch.int64)
            table = torch.empty(len(tables(2)), device="cuda", dtype=torch.int64)
            sizes = ({0: Dim.DYNAMIC}, None, None, {1: Dim.DYNAMIC}, None)
            program = export(Ladder(), (vec, roots, recip, types, table), dynamic_shapes=sizes)
        outputs = [n.meta["val"] for n in program.graph_module.graph.output_node().args[0]]
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

    @pytest.mark.parametrize("edges", [0, 1, 128, 129])
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

"""GPU kernels of ZBL: their numbers under Triton's interpreter, in a process of its own."""

import pytest

from fastmlip.testing.process import run_python

pytest.importorskip("triton")


def test_numbers_under_the_interpreter():
    """Every case against the reference, in memory that starts as NaN; the edges of the domain."""
    code = """
        from functools import partial
        import torch
        from fastmlip import use_backend
        from fastmlip.ops import zbl
        from fastmlip.ops.zbl import R_MIN
        from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty
        from fastmlip.testing.cases.zbl import Problem
        op = OPERATORS["zbl"]
        f64, f32 = torch.float64, torch.float32
        def check(case, order, **more):
            both = (partial(f, problem=case.problem) for f in (op.op, op.reference))
            with use_backend("triton"), poison_empty():
                assert_same_derivatives(*both, op.make_inputs(case, **more), order)
        for case in op.cases.values():
            check(case, 3, nodes=4, edges=9)
            check(case, 2, dtype=f32, nodes=3, edges=80, sorted=True)
        for nodes, edges in ((3, 0), (0, 0), (1, 1), (1, 65)):
            check(op.cases["oxides"], 2, nodes=nodes, edges=edges)
        length = torch.tensor([0.0, 1e-5, R_MIN, 0.8, 5.0, 1e30, float("nan")], dtype=f64)
        index = torch.tensor([[0, 1, 2, 0, 1, 1, 3], [1, 2, 1, 3, 3, 3, 0]])
        for normed in (False, True):
            with use_backend("triton"), poison_empty():
                length.requires_grad_()
                problem = Problem((92, 1), 5.0, normed=normed)
                energy = op.op(length, index, torch.zeros(4, dtype=torch.int64), problem=problem)
                (slope,) = torch.autograd.grad(energy[:3].sum(), length, create_graph=True)
                (second,) = torch.autograd.grad(slope.sum(), length)
            assert energy[:3].isfinite().all() and energy[3].isnan()
            assert slope[:6].isfinite().all() and second[:6].isfinite().all()
            assert (slope[:2] == 0).all() and (slope[2:4] < 0).all() and (slope[4:6] == 0).all()
        # between float32's 1e-4 and R_MIN: too close, so without a force
        near = torch.tensor([R_MIN * (1 - 1e-9), R_MIN], dtype=f64, requires_grad=True)
        ends, types = torch.tensor([[0, 1], [1, 0]]), torch.zeros(2, dtype=torch.int64)
        with use_backend("triton"):
            energy = op.op(near, ends, types, problem=Problem((92, 1), 5.0))
            (slope,) = torch.autograd.grad(energy.sum(), near)
        assert slope[0] == 0 and slope[1] < 0, slope
        bad = index.clone()
        bad[1, 0] = 4
        for wrong in (bad, bad.flip(0)):
            try:
                with use_backend("triton"):
                    op.op(length, wrong, torch.zeros(4, dtype=torch.int64), problem=problem)
            except (RuntimeError, IndexError):
                continue
            raise AssertionError("an index out of range was taken")
        arguments = op.arguments(op.make_inputs(case, nodes=4, edges=9), case)
        for num_nodes in (-1, 5):
            try:
                with use_backend("triton"):
                    zbl(**arguments | {"num_nodes": num_nodes})
            except ValueError as error:
                assert "num_nodes: expected 0 to N = 4" in str(error)
                continue
            raise AssertionError("more nodes than atoms were taken")
        print("agrees")
    """
    assert run_python(code, TRITON_INTERPRET="1").strip() == "agrees"

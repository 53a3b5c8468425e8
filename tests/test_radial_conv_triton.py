"""radial_conv's spline form, gate and irreps_linear in Triton, under its interpreter.

``TRITON_INTERPRET`` is read when kernels are defined, so without it this file starts itself again
in a process of its own.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmlip import backend, ops
from fastmlip.ops.edge_order import edge_order
from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty
from fastmlip.testing.process import run_interpreted

pytest.importorskip("triton")
CONV, GATE, LINEAR = (OPERATORS[name] for name in ("radial_conv", "gate", "irreps_linear"))
SPLINES = [name for name, case in CONV.cases.items() if case.problem.kind == "first_row"]
ODD = "odd multiplicities, spline"


def check(table, case, dtype=torch.float64, order=2, **sizes):
    """An operator against its reference, in memory that starts as NaN."""
    op, reference = (partial(f, problem=case.problem) for f in (table.op, table.reference))
    with backend.use_backend("triton"), poison_empty():
        assert_same_derivatives(op, reference, table.make_inputs(case, dtype, **sizes), order)


class Largest(TorchDispatchMode):
    """The most columns that a tensor of a number of rows has."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.columns = rows, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.dim() > 1 and t.shape[0] == self.rows:
                self.columns = max(self.columns, t.numel() // self.rows)
        return result


if not backend.interpreting():

    def test_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__)

    @pytest.mark.slow
    def test_more_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__, "slow")

else:

    @pytest.mark.parametrize("name", SPLINES)
    def test_up_to_second_derivatives(name):
        check(CONV, CONV.cases[name], nodes=2, edges=3)

    @pytest.mark.parametrize("name", [ODD, "blocks and a half, spline"])
    def test_in_float32(name):
        check(CONV, CONV.cases[name], torch.float32, nodes=3, edges=5)

    @pytest.mark.parametrize(
        "layout",
        [pytest.param("mul_ir", marks=pytest.mark.slow), "ir_mul"],
    )
    def test_up_to_third_derivatives_in_both_layouts(layout):
        problem = CONV.cases[ODD].problem
        product = replace(problem.product, layout=layout)
        case = CONV.cases[ODD]._replace(problem=problem._replace(product=product))
        check(CONV, case, order=3, nodes=2, edges=2)

    @pytest.mark.parametrize(("nodes", "edges"), [(3, 0), (0, 0), (1, 1), (5, 2)])
    def test_empty_and_small_graphs(nodes, edges):
        check(CONV, CONV.cases["one interval, spline"], nodes=nodes, edges=edges)

    def test_a_block_cut_into_several_launches(monkeypatch):
        from fastmlip.kernels import _launches

        monkeypatch.setattr(_launches, "MAX_TERMS", 4)
        monkeypatch.setattr(_launches, "MAX_WORDS", 8)
        _launches.launches.cache_clear()
        try:
            product = CONV.cases[ODD].problem.product
            todo = _launches.launches(product, True, False, 8, True)
            assert any(launch.adds for launch in todo)
            check(CONV, CONV.cases[ODD], nodes=2, edges=3)
        finally:
            _launches.launches.cache_clear()

    def test_no_row_of_an_edge_holds_its_weights():
        """Up to the second derivatives."""
        case = CONV.cases["nequip-M-hidden, spline"]
        x, a, place, table, dst, src, first_row, _ = CONV.make_inputs(case, nodes=2, edges=5)
        product = case.problem.product
        operands = [t.requires_grad_() for t in (x, a, place)]
        with backend.use_backend("triton"), Largest(5) as seen:
            out = ops.radial_conv(x, a, place, table, dst, src, product, first_row=first_row)
            grad = torch.ones_like(out, requires_grad=True)
            first = torch.autograd.grad(out, operands, grad, create_graph=True)
            torch.autograd.grad(first, [*operands, grad], [torch.ones_like(t) for t in first])
        assert 0 < seen.columns < product.weight_numel / 8, "parts of the gradient of edge_attr"

    def test_wrong_rows_and_orders_are_refused():
        case = CONV.cases[ODD]
        x, a, place, table, dst, src, first_row, _ = CONV.make_inputs(case, nodes=3, edges=4)
        call = partial(ops.radial_conv, x, a, place, table, dst, src, case.problem.product)
        order = edge_order(dst, src, 3)
        with backend.use_backend("triton"):
            for wrong in (-1, table.shape[1] - 5):
                with pytest.raises(RuntimeError, match="first_row: every entry"):
                    call(first_row=torch.full_like(first_row, wrong))
            with pytest.raises(RuntimeError, match="order: not the edge_order"):
                call(first_row=first_row, order=order + 1000)

    @pytest.mark.parametrize("name", GATE.cases)
    def test_gates(name):
        check(GATE, GATE.cases[name], order=3, nodes=3)

    @pytest.mark.parametrize("name", ["both parities", "activations within a block"])
    def test_gates_in_float32_and_of_no_rows(name):
        check(GATE, GATE.cases[name], torch.float32, nodes=3)
        check(GATE, GATE.cases[name], nodes=0)

    def test_gates_of_large_numbers_are_finite():
        (case, *_) = (GATE.cases[name] for name in ("activations within a block",))
        (x,) = GATE.make_inputs(case, torch.float32, nodes=2)
        for size in (1e3, -1e3, 1e30):
            values = torch.full_like(x, size, requires_grad=True)
            with backend.use_backend("triton"):
                out = ops.gate(values, case.problem)
                (dx,) = torch.autograd.grad(out.clamp(-1, 1).sum(), values)
            assert not out.isnan().any() and not dx.isnan().any()

    @pytest.mark.parametrize(
        "name",
        [pytest.param(n, marks=pytest.mark.slow if n.startswith("nequip-M") else ())
         for n in LINEAR.cases],
    )  # fmt: skip
    def test_linear_maps(name):
        check(LINEAR, LINEAR.cases[name], nodes=5)

    def test_linear_maps_in_float32_of_one_row_and_of_none():
        check(LINEAR, LINEAR.cases["types and high l"], torch.float32, nodes=6)
        for nodes in (0, 1):
            check(LINEAR, LINEAR.cases["several paths to a block"], nodes=nodes)

    @pytest.mark.parametrize("layouts", [("ir_mul", "mul_ir"), ("mul_ir", "ir_mul")])
    def test_linear_maps_between_layouts(layouts):
        case = LINEAR.cases["types and high l"]
        names = dict(zip(("layout_in", "layout_out"), layouts, strict=True))
        check(LINEAR, case._replace(linear=replace(case.linear, **names)), order=3, nodes=3)

    def test_rows_of_a_linear_map_keep_numbers_that_are_not_finite_to_themselves():
        case = LINEAR.cases["types and high l"]
        x, weight, types = LINEAR.make_inputs(case, nodes=6)
        with backend.use_backend("triton"):
            good = ops.irreps_linear(x, weight, case.linear, types)
            x[2], weight[types[2]] = torch.nan, torch.inf
            bad = ops.irreps_linear(x, weight, case.linear, types)
        others = types != types[2]
        assert others.any() and torch.equal(bad[others], good[others]) and bad[2].isnan().all()

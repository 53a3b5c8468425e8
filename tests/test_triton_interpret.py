"""Numbers of the GPU kernels, run by Triton's interpreter on the CPU.

``TRITON_INTERPRET`` is read when kernels are defined, so the checks live in a process of their own:
without the variable this file starts itself again with it. ``TRITON_INTERPRET=1 pytest`` on this
file shows each check by name.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from fastmlip import backend, ops
from fastmlip.ops.edge_order import EdgeOrder, edge_order
from fastmlip.testing import (
    OPERATORS,
    assert_close,
    assert_same_derivatives,
    derivatives,
    make_inputs,
    poison_empty,
)
from fastmlip.testing.process import run_interpreted

pytest.importorskip("triton")
OP = OPERATORS["tensor_product_conv"]
DTYPES = (torch.float32, torch.float64)


def check(name, dtype=torch.float64, order=2, nodes=3, edges=4, **more):
    """The operator against the reference, in memory that starts as NaN."""
    case = OP.cases[name]
    inputs = make_inputs(case, dtype, nodes=nodes, edges=edges, **more)
    op, reference = (partial(f, problem=case.problem) for f in (OP.op, OP.reference))
    with backend.use_backend("triton"), poison_empty():
        assert_same_derivatives(op, reference, inputs, order)


if not backend.interpreting():

    def test_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__)

    @pytest.mark.slow
    def test_more_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__, "slow")

else:

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", ["nequip-S-hidden", "odd-multiplicities"])
    def test_up_to_second_derivatives(name, dtype):
        check(name, dtype)

    @pytest.mark.parametrize("name", ["nequip-M-hidden", "shared-output", "unused-blocks"])
    def test_up_to_second_derivatives_in_float64(name):
        check(name, nodes=2, edges=2)

    @pytest.mark.parametrize("name", ["nequip-S-last", "repeated-path"])
    def test_up_to_third_derivatives(name):
        check(name, order=3, nodes=2, edges=2)

    def test_rows_in_ir_mul_layout():
        case = OP.cases["odd-multiplicities"]
        inputs = make_inputs(case, torch.float64, nodes=3, edges=4)
        of_ir_mul = replace(case.problem, layout="ir_mul")
        op, reference = (partial(f, problem=of_ir_mul) for f in (OP.op, OP.reference))
        with backend.use_backend("triton"), poison_empty():
            assert_same_derivatives(op, reference, inputs, 2)

    def test_degrees_up_to_nine():
        check("high-l", order=1, nodes=2, edges=1)

    @pytest.mark.parametrize(("nodes", "edges"), [(3, 0), (0, 0), (1, 1), (5, 2)])
    def test_empty_and_small_graphs(nodes, edges):
        check("path-weights", nodes=nodes, edges=edges)

    def test_a_block_cut_into_several_launches_and_channel_blocks(monkeypatch):
        from fastmlip.kernels import _launches

        problem = OP.cases["nequip-M-last"].problem
        few = len(_launches.launches(problem, True, False, 8))
        monkeypatch.setattr(_launches, "MAX_TERMS", 4)
        monkeypatch.setattr(_launches, "MAX_WORDS", 8)
        _launches.launches.cache_clear()
        try:
            many = _launches.launches(OP.cases["odd-multiplicities"].problem, True, False, 8)
            assert len(many) > few and any(launch.adds for launch in many)
            assert any(launch.blocks > 1 for launch in _launches.launches(problem, True, False, 8))
            check("odd-multiplicities", nodes=2, edges=2)
            check("nequip-S-last", nodes=2, edges=2)
        finally:
            _launches.launches.cache_clear()

    def test_strided_operands_and_more_rows_of_x_than_receivers():
        case = OP.cases["repeated-irreps"]
        inputs = make_inputs(case, nodes=5, edges=4)
        ends = {"edge_dst": inputs.edge_dst % 2}  # nodes 2, 3 and 4 receive nothing
        wide = {
            name: torch.stack([value, torch.full_like(value, torch.nan)], dim=-1)[..., 0]
            for name, value in inputs._asdict().items()
            if value.is_floating_point()
        }
        with backend.use_backend("triton"), poison_empty():
            op = partial(OP.op, problem=case.problem)
            got = derivatives(op, inputs._replace(**ends, **wide), 2)
        reference = partial(OP.reference, problem=case.problem)
        truths = derivatives(reference, inputs._replace(**ends), 2)
        for value, truth in zip(got, truths, strict=True):
            assert_close(value.value, truth.value, truth.order, truth.name)

    @pytest.mark.parametrize(
        ("part", "bad"),
        [("dst_ptr", -1), ("src_ptr", 9), ("dst_edge", 4), ("dst_src", -1), ("src_edge", -1),
         ("src_dst", 3), ("node", 3)],
    )  # fmt: skip
    def test_an_order_of_other_edges_is_refused(part, bad):
        case = OP.cases["path-weights"]
        inputs = make_inputs(case, nodes=3, edges=4)
        order = edge_order(inputs.edge_dst, inputs.edge_src, 3)
        with backend.use_backend("triton"):
            call = partial(ops.tensor_product_conv, *inputs, case.problem)
            assert_close(call(order=order), call(), name="with the order that is given")
            getattr(EdgeOrder(order, 3, 4), part)[1] = bad
            with pytest.raises(RuntimeError, match="order: not the edge_order"):
                call(order=order)
            for wrong in (order[1:], order.int(), order.to("meta")):
                with pytest.raises(ValueError, match="order: expected int64"):
                    call(order=wrong)

    @pytest.mark.parametrize("part", ["dst_edge", "src_edge"])
    def test_an_order_without_an_edge_is_refused(part):
        """A row of no edge would stay as memory was."""
        case = OP.cases["path-weights"]
        inputs = make_inputs(case, nodes=3, edges=4)
        order = edge_order(inputs.edge_dst, inputs.edge_src, 3)
        edges = getattr(EdgeOrder(order, 3, 4), part)
        edges[1] = edges[0]
        raises = pytest.raises(RuntimeError, match="order: not the edge_order")
        with backend.use_backend("triton"), raises:
            ops.tensor_product_conv(*inputs, case.problem, order=order)

    def test_an_order_along_a_curve_is_refused():
        """As a CPU makes it of more than 1,000 nodes with positions; kernels walk from 0 on."""
        case = OP.cases["path-weights"]
        inputs = make_inputs(case, nodes=1001, edges=4)
        positions = torch.rand((1001, 3), generator=torch.Generator().manual_seed(0))
        order = edge_order(inputs.edge_dst, inputs.edge_src, 1001, positions)
        assert not torch.equal(EdgeOrder(order, 1001, 4).node, torch.arange(1001))
        raises = pytest.raises(RuntimeError, match="order: expected nodes from 0 to N - 1")
        with backend.use_backend("triton"), raises:
            ops.tensor_product_conv(*inputs, case.problem, order=order)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", [n for n in OP.cases if "-L-" not in n and "-XL-" not in n])
    def test_every_case(name, dtype):
        check(name, dtype, edges=5)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["nequip-M-hidden", "shared-output", "odd-multiplicities"])
    def test_third_derivatives_of_larger_cases(name):
        check(name, order=3, nodes=2, edges=2)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["nequip-L-hidden", "nequip-XL-last", "nequip-XL-hidden"])
    def test_large_presets(name):
        check(name, torch.float32, nodes=2, edges=2)

"""Allegro's operators in Triton under its interpreter, one by one and in whole models.

``TRITON_INTERPRET`` is read when kernels are defined, so without it this file starts itself again
in a process of its own.
"""

from functools import partial

import pytest
import torch

from fastmlip import backend, ops, torch_private
from fastmlip.testing import OPERATORS, assert_same_derivatives, poison_empty
from fastmlip.testing.process import run_interpreted

pytest.importorskip("triton")
pytest.importorskip("allegro")
NAMES = ("contraction", "env_sum", "spline")
SIZES = {
    "contraction": ({"nodes": 3, "edges": 0}, {"nodes": 0, "edges": 0}, {"nodes": 2, "edges": 1}),
    "env_sum": ({"edges": 0}, {"edges": 1}),
    "spline": ({"edges": 0}, {"edges": 1}),
}


def check(name, case, dtype, **sizes):
    """An operator against its reference, in memory that starts as NaN."""
    table = OPERATORS[name]
    row = table.cases[case]
    op, reference = (partial(f, problem=row.problem) for f in (table.op, table.reference))
    with backend.use_backend("triton"), poison_empty():
        assert_same_derivatives(op, reference, table.make_inputs(row, dtype, **sizes), 2, slack=3)


if not backend.interpreting():

    def test_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__)

    @pytest.mark.slow
    def test_more_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__, "slow")

else:
    from nequip_cases import force_loss_gradients, outputs, rattled, relative_error, to_data
    from test_allegro import build

    import fastmlip

    SLOW = {"l_max 3", "l_max 3, one weight for all", "both parities", "l_max 2, 64 channels",
            "l_max 4", "both parities, l_max 3", "l_max 2, first layer"}  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "case"),
        [pytest.param(name, case, marks=pytest.mark.slow if case in SLOW else ())
         for name in NAMES for case in OPERATORS[name].cases],
    )  # fmt: skip
    def test_up_to_second_derivatives(name, case):
        check(name, case, torch.float64, edges=5)

    @pytest.mark.parametrize("name", NAMES)
    def test_in_float32(name):
        check(name, list(OPERATORS[name].cases)[1], torch.float32, edges=5)

    @pytest.mark.parametrize(("name", "sizes"), [(n, s) for n in NAMES for s in SIZES[n]], ids=str)
    def test_any_size(name, sizes):
        check(name, list(OPERATORS[name].cases)[1], torch.float64, **sizes)

    @pytest.mark.parametrize("name", ["contraction", "env_sum"])
    def test_an_order_of_other_edges_is_an_error(name):
        table = OPERATORS[name]
        row = list(table.cases.values())[1]
        inputs = table.make_inputs(row, torch.float64, edges=5)
        nodes = inputs.env.shape[0] if name == "contraction" else row.num_nodes
        order = ops.edge_order(inputs.edge_dst, inputs.edge_dst, nodes)
        for wrong, error in ((order + 1000, RuntimeError), (order.int(), ValueError)):
            with backend.use_backend("triton"), pytest.raises(error, match="order"):
                getattr(ops, name)(**table.arguments(inputs, row), order=wrong)

    def few_edges():
        data = to_data(rattled())
        keep = torch.arange(data["edge_index"].shape[1]) % 7 == 0
        data["edge_index"] = data["edge_index"][:, keep]
        data["edge_cell_shift"] = data["edge_cell_shift"][keep]
        return data

    @pytest.mark.usefixtures("nequip_state")
    @pytest.mark.parametrize("tabulated", [False, True])
    def test_a_model(tabulated):
        """Energies, forces, stress, and the gradients of a force loss where there are any."""
        few = {"num_tensor_features": 2, "parity": True, "l_max": 1}
        stock = build("l2", "float64", **few)
        fast = build("l2", "float64", **few)
        fast = fastmlip.tabulate(fast) if tabulated else fastmlip.accelerate(fast)
        data = few_edges()
        bound = 1e-5 if tabulated else 1e-10
        for of in (outputs,) if tabulated else (outputs, force_loss_gradients):
            want = of(stock, data)
            with backend.use_backend("triton"):
                got = of(fast, data)
            for key, reference in want.items():
                if reference.abs().max() > 1e-12:
                    assert relative_error(got[key], reference) <= bound, key
        with backend.use_backend("triton"):
            ran = torch_private.count_operators("fastmlip", lambda: outputs(fast, data))
        assert {"contraction", "contraction_backward", "env_sum", "env_sum_backward"} <= set(ran)
        assert {"edge_vectors", "edge_vectors_backward"} <= set(ran), "forces in any order"
        assert ("spline" in ran) == tabulated

    @pytest.mark.usefixtures("nequip_state")
    def test_the_order_of_edges_is_made_and_checked_once_for_all_layers():
        counts = []
        for layers in (2, 3):
            few = {"num_tensor_features": 2, "l_max": 1, "num_layers": layers}
            fast = fastmlip.accelerate(build("l2", "float64", **few))
            with backend.use_backend("triton"):
                seen = torch_private.count_operators(
                    "aten", lambda model=fast: outputs(model, few_edges())
                )
            counts.append({name: seen[name] for name in ("sort.stable", "_assert_async.msg")})
        assert counts[0] == counts[1], counts
        assert counts[0]["sort.stable"] == 4, "of both ends, for edge vectors and for the layers"

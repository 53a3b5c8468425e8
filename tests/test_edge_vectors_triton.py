"""Edge vectors in Triton under its interpreter, by themselves and in a NequIP model.

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
OP = OPERATORS["edge_vectors"]

if not backend.interpreting():

    def test_kernels_match_the_reference_under_the_interpreter():
        run_interpreted(__file__)

else:
    from nequip_cases import build, outputs, rattled, relative_error, to_data

    import fastmlip

    def check(name, dtype=torch.float64, edges=150):
        op, reference = (partial(f, problem=OP.cases[name]) for f in (OP.op, OP.reference))
        with backend.use_backend("triton"), poison_empty():
            inputs = OP.make_inputs(OP.cases[name], dtype, edges)
            assert_same_derivatives(op, reference, inputs, 3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("name", OP.cases)
    def test_all_derivatives(name, dtype):
        check(name, dtype)

    @pytest.mark.parametrize("edges", [0, 1, 33, 700])
    def test_any_number_of_edges(edges):
        check("in any order", edges=edges)

    def test_a_number_that_is_not_finite_stays_in_its_rows():
        inputs = OP.make_inputs(OP.cases["in any order"])
        grad = torch.ones(len(inputs.edge_dst), 3).double()
        grad[5, 1] = torch.nan
        positions = inputs.positions.requires_grad_()
        with backend.use_backend("triton"):
            vectors = ops.edge_vectors(*inputs)
            (slope,) = torch.autograd.grad(vectors, positions, grad)
        rows = slope.isnan().any(1).nonzero().flatten().tolist()
        assert rows == sorted({int(inputs.edge_dst[5]), int(inputs.edge_src[5])})

    def test_an_order_of_other_edges_is_an_error():
        inputs = OP.make_inputs(OP.cases["sorted"])
        order = ops.edge_order(inputs.edge_dst, inputs.edge_src, len(inputs.positions))
        for wrong, error in ((order + 1000, RuntimeError), (order.int(), ValueError)):
            with backend.use_backend("triton"), pytest.raises(error, match="order"):
                ops.edge_vectors(*inputs, wrong)

    @pytest.mark.usefixtures("nequip_state")
    def test_forces_of_a_model_have_one_order_of_sums():
        """On a GPU, torch adds rows up in the order in which its threads come."""
        stock, fast = build("tiny", "float64"), fastmlip.accelerate(build("tiny", "float64"))
        data = to_data(rattled())
        keep = torch.arange(data["edge_index"].shape[1]) % 5 == 0
        data["edge_index"] = data["edge_index"][:, keep]
        data["edge_cell_shift"] = data["edge_cell_shift"][keep]
        want = outputs(stock, data)
        with backend.use_backend("triton"):
            got = outputs(fast, data)
            seen = torch_private.count_operators("aten", lambda: outputs(fast, data))
        for key in ("forces", "stress"):
            assert relative_error(got[key], want[key]) <= 1e-10, key
        unordered = ("index_add", "scatter_add", "index_put", "index_reduce", "put_", "bincount")
        found = {name for name in seen if name.startswith(unordered)}
        assert not found, found

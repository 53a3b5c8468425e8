"""Whole NequIP and SevenNet models on the path of a GPU, under Triton's interpreter.

``TRITON_INTERPRET`` is read when kernels are defined, so without it this file starts itself again
in a process of its own.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastmlip
from fastmlip import backend, torch_private
from fastmlip.testing.process import run_interpreted

pytest.importorskip("triton")
OF_LAYERS = {"gate", "irreps_linear", "edge_vectors", "edge_embedding"}


class Launches(TorchDispatchMode):
    """Operators of torch that run a kernel, none of which the host waits for."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")
    NONE = ("empty", "new_empty", "detach", "alias", "_unsafe_view", "lift", "_reshape_alias",
            "scalar_tensor", "promote_types")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"the host would wait for {name}"
        if func.namespace == "aten" and not func.is_view and not name.startswith(self.NONE):
            self.seen[name] += 1
        return result


if not backend.interpreting():

    def test_models_match_stock_under_the_interpreter():
        run_interpreted(__file__)

    @pytest.mark.slow
    def test_more_models_match_stock_under_the_interpreter():
        run_interpreted(__file__, "slow")

else:
    from nequip_cases import (
        build,
        force_loss_gradients,
        outputs,
        rattled,
        relative_error,
        to_data,
    )

    FEW = {"num_features": 3, "radial_mlp_width": 8}
    MODELS = {
        "tiny": ("tiny", {}),
        "S": ("S", FEW),
        "M": ("M", FEW),
        "l2 5-2-7 parity": ("l2 5-2-7 parity", {"radial_mlp_width": 8}),
    }
    SLOW = {"M", "l2 5-2-7 parity"}
    NAMES = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MODELS]

    def few_edges(each=5):
        data = to_data(rattled())
        keep = torch.arange(data["edge_index"].shape[1]) % each == 0
        data["edge_index"] = data["edge_index"][:, keep]
        data["edge_cell_shift"] = data["edge_cell_shift"][keep]
        return data

    def of(name, how, dtype="float64"):
        config, more = MODELS[name]
        model = build(config, dtype, **more)
        return model if how is None else getattr(fastmlip, how)(model)

    def assert_same(got, want, bound):
        for key, reference in want.items():
            if reference.abs().max() > 1e-12:
                assert relative_error(got[key], reference) <= bound, key

    @pytest.mark.usefixtures("nequip_state")
    @pytest.mark.parametrize("name", NAMES)
    def test_energies_forces_stress_and_gradients_of_a_force_loss(name):
        stock, fast, data = of(name, None), of(name, "accelerate"), few_edges()
        for function in (outputs, force_loss_gradients):
            want = function(stock, data)
            with backend.use_backend("triton"):
                got = function(fast, data)
            assert_same(got, want, 1e-10)
        with backend.use_backend("triton"):
            ran = torch_private.count_operators("fastmlip", lambda: outputs(fast, data))
        assert OF_LAYERS | {"tensor_product_conv"} <= set(ran), ran

    @pytest.mark.usefixtures("nequip_state")
    @pytest.mark.parametrize("name", NAMES)
    def test_a_tabulated_model(name):
        fast, data = of(name, "tabulate"), few_edges()
        want = outputs(fast, data)  # of the C++ operators
        with backend.use_backend("triton"):
            got = outputs(fast, data)
            ran = torch_private.count_operators("fastmlip", lambda: outputs(fast, data))
        assert_same(got, want, 1e-10)
        assert OF_LAYERS | {"radial_conv", "radial_conv_backward"} <= set(ran), ran
        assert not {"tensor_product_conv", "spline"} & set(ran), "weights of every edge"

    @pytest.mark.usefixtures("nequip_state")
    @pytest.mark.parametrize("how", ["accelerate", "tabulate"])
    def test_nothing_waits_and_edges_are_sorted_once_for_all_layers(how):
        counts = []
        for layers in (2, 3):
            model = build("tiny", "float64", num_layers=layers)
            model = getattr(fastmlip, how)(model)
            with backend.use_backend("triton"), Launches() as watch:
                outputs(model, few_edges())
            counts.append(watch.seen)
        for name in ("sort", "searchsorted", "_assert_async"):
            assert counts[0][name] == counts[1][name] > 0, (name, counts)
        more = counts[1].total() - counts[0].total()
        assert more <= (48 if how == "accelerate" else 28), counts[1] - counts[0]

    @pytest.mark.usefixtures("nequip_state")
    def test_the_same_bits_in_two_runs():
        model, data = of("tiny", "tabulate", "float32"), few_edges()
        with backend.use_backend("triton"):
            first, second = outputs(model, data), outputs(model, data)
        assert all(torch.equal(first[key], second[key]) for key in first)

    @pytest.mark.parametrize("how", ["accelerate", "tabulate"])
    @pytest.mark.parametrize(
        "name",
        ["typed", *(pytest.param(n, marks=pytest.mark.slow) for n in ("parity, XPLOR", "linear"))],
    )
    def test_sevennet(name, how):
        pytest.importorskip("sevenn")
        import sevennet_cases as cases

        atoms = cases.molecule()
        with cases.in_dtype(torch.float64):
            stock = cases.small(name)
            fast = getattr(fastmlip, how)(cases.small(name))
        want = cases.run(stock if how == "accelerate" else fast, atoms)
        with backend.use_backend("triton"):
            got = cases.run(fast, atoms)
            ran = torch_private.count_operators("fastmlip", lambda: cases.run(fast, atoms))
        cases.assert_same(got, want, 1e-10)
        conv = "radial_conv" if how == "tabulate" else "tensor_product_conv"
        assert {conv, f"{conv}_backward", "gate", "irreps_linear"} <= set(ran), ran

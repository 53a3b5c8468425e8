"""A MACE model on the path of a GPU, under Triton's interpreter.

``TRITON_INTERPRET`` is read when kernels are defined, so without it this file starts itself again
in a process of its own.
"""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import fastmlip
from fastmlip import backend
from fastmlip.testing.process import run_interpreted

pytest.importorskip("mace", reason="MACE needs e3nn 0.4.4, its own environment: make test-mace")
pytest.importorskip("triton")


class Seen(TorchDispatchMode):
    """The operators of fastmlip's that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastmlip":
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


if not backend.interpreting():

    def test_a_model_matches_stock_under_the_interpreter():
        run_interpreted(__file__)

else:
    import mace_cases as cases

    SMALLER = {"hidden_irreps": "2x0e + 2x1o", "max_ell": 1, "radial_MLP": [4], "correlation": 2}

    @pytest.mark.parametrize("tabulated", [False, True])
    def test_energies_forces_and_stress(tabulated, monkeypatch):
        monkeypatch.setitem(cases.VARIANTS, "smaller", SMALLER)
        stock, frame = cases.small("smaller"), cases.STRUCTURES["molecule"]
        want = cases.run(stock, frame)
        fast = fastmlip.tabulate(stock, tol=1e-4) if tabulated else fastmlip.accelerate(stock)
        with fastmlip.use_backend("triton"), Seen() as seen:
            got = cases.run(fast, frame)
        assert {"radial_conv", "symmetric_contraction", "irreps_linear"} <= seen.names or (
            not tabulated and "tensor_product_conv" in seen.names
        )
        assert not any(name.endswith("_cpu") for name in seen.names)
        cases.assert_same(got, want, 1e-4 if tabulated else 1e-10)

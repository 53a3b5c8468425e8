"""NequIP's own model tests, with the modifier on."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import get_method
from nequip.utils.global_state import set_global_state
from nequip.utils.test import set_irreps_debug
from nequip.utils.unittests.conftest import *  # noqa: F403  (its fixtures)
from nequip.utils.unittests.model_tests_ase_integration import ASEIntegrationMixin
from nequip.utils.unittests.model_tests_basic import EnergyModelTestsMixin

set_irreps_debug(False)  # that import turned it on for every test of the session
pytestmark = pytest.mark.usefixtures("nequip_state", "irreps_debug", "programs")

MODIFIER = "enable_FastMLIP"
CONFIG = {
    "_target_": "nequip.model.NequIPGNNModel",
    "seed": 123,
    "type_names": ["H", "C", "O"],
    "r_max": 4.0,
    "l_max": 2,
    "num_layers": 2,
    "num_features": 16,
    "radial_mlp_width": 16,
    "avg_num_neighbors": 8.0,
    "per_type_energy_scales": {"H": 1.0, "C": 1.2, "O": 0.8},
    "per_type_energy_shifts": {"H": 0.3, "C": 1.4, "O": 1.7},
}


@pytest.fixture(scope="session", autouse=True)
def default_dtype():
    """NequIP's own sets float64 only in a process that no other test has used NequIP in."""
    set_global_state(allow_tf32=False)
    torch.set_default_dtype(torch.float64)  # until nequip_state ends with this module
    return torch.float64


@pytest.fixture(scope="session", params=["float32", "float64"])
def model_dtype(request, default_dtype):
    """NequIP's own skips every test unless the default dtype is float64 when it is first asked."""
    return request.param


@pytest.fixture(scope="module")
def irreps_debug():
    set_irreps_debug(True)
    yield
    set_irreps_debug(False)


@pytest.fixture(scope="module")
def programs():
    """NequIP's tests call its programs by name, as in an environment that is activated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield


class FastNequIP(EnergyModelTestsMixin):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls, device):
        """That of ``--device``; NequIP's own takes a GPU wherever there is one."""
        return str(device)

    @pytest.fixture(
        scope="class",
        params=[
            pytest.param(False, id="no parity", marks=pytest.mark.slow),
            pytest.param(True, id="parity"),
        ],
    )
    @classmethod
    def config(cls, request):
        return {**CONFIG, "parity": request.param}

    @pytest.fixture
    def strict_locality(self):
        return False

    @staticmethod
    def make_model(model_config, device):
        config = {
            "model": copy.deepcopy(model_config),
            "modifiers": [{"modifier": MODIFIER}],
        }
        model = get_method("nequip.model.modify")(**config).to(device)
        kinds = [type(m).__name__ for m in model.modules()]
        assert "FastTensorProductScatter" in kinds and "TensorProductScatter" not in kinds
        return model


class TestModel(FastNequIP):
    test_numeric_gradient_partial = pytest.mark.slow(FastNequIP.test_numeric_gradient_partial)


@pytest.mark.slow
class TestASEIntegration(ASEIntegrationMixin, FastNequIP):
    """Trains, packages, compiles with the modifier, and compares to the saved stock model."""

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls):
        return {**CONFIG, "parity": True}

    @pytest.fixture(scope="class", params=["minimal_toy_emt.yaml"])  # the other needs a download
    @classmethod
    def conffile(cls, request):
        return request.param

    @pytest.fixture(scope="class")
    @classmethod
    def ase_compile_modifiers(cls):
        return lambda mode, device, model_dtype: [MODIFIER]


del FastNequIP, EnergyModelTestsMixin, ASEIntegrationMixin  # collected by their names otherwise

"""NequIP's tests for models, which Allegro's own are made of, on Allegro with the modifier on."""

import copy

import pytest
from hydra.utils import get_method
from nequip.utils.unittests.conftest import *  # noqa: F403  (its fixtures)
from nequip.utils.unittests.model_tests_ase_integration import ASEIntegrationMixin
from nequip.utils.unittests.model_tests_basic import EnergyModelTestsMixin
from test_nequip_unittests import (  # noqa: F401  (fixtures)
    MODIFIER,
    default_dtype,
    irreps_debug,
    model_dtype,
    programs,
)

pytest.importorskip("allegro")
pytestmark = pytest.mark.usefixtures("nequip_state", "irreps_debug", "programs")

CONFIG = {
    "_target_": "allegro.model.AllegroModel",
    "seed": 123,
    "type_names": ["H", "C", "O"],
    "r_max": 4.0,
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
    "num_scalar_features": 16,
    "num_tensor_features": 8,
    "scalar_embed_mlp_hidden_layers_width": 16,
    "allegro_mlp_hidden_layers_width": 16,
    "readout_mlp_hidden_layers_width": 16,
    "avg_num_neighbors": 8.0,
    "per_type_energy_scales": {"H": 1.0, "C": 1.2, "O": 0.8},
    "per_type_energy_shifts": {"H": 0.3, "C": 1.4, "O": 1.7},
}
SPLINES = {"_target_": "allegro.nn.TwoBodySplineScalarEmbed", "num_splines": 8, "spline_span": 6}
CUTOFFS = {"H": 2.0, "C": {"H": 4.0, "C": 3.5, "O": 3.7}, "O": 3.9}
VARIANTS = {
    "l2 parity": {"l_max": 2, "parity": True},
    "one layer": {"l_max": 1, "parity": False, "num_layers": 1},
    "cutoffs": {"l_max": 3, "parity": False, "per_edge_type_cutoff": CUTOFFS},
    "splines": {"l_max": 2, "parity": False, "radial_chemical_embed": SPLINES},
    "deep": {"l_max": 3, "parity": True, "num_layers": 3, "allegro_mlp_hidden_layers_depth": 2},
    "uncoupled": {"l_max": 2, "parity": True, "tp_path_channel_coupling": False},
}


class FastAllegro(EnergyModelTestsMixin):
    @pytest.fixture(scope="class")
    @classmethod
    def device(cls, device):
        """That of ``--device``; NequIP's own takes a GPU wherever there is one."""
        return str(device)

    @pytest.fixture(
        scope="class",
        params=[
            pytest.param(name, marks=() if name == "l2 parity" else pytest.mark.slow)
            for name in VARIANTS
        ],
    )
    @classmethod
    def config(cls, request):
        return {**CONFIG, **VARIANTS[request.param]}

    @pytest.fixture
    def strict_locality(self):
        return True

    @staticmethod
    def make_model(model_config, device):
        config = {
            "model": copy.deepcopy(model_config),
            "modifiers": [{"modifier": MODIFIER}],
        }
        model = get_method("nequip.model.modify")(**config).to(device)
        kinds = {type(m).__name__ for m in model.modules()}
        assert {"FastAllegro", "FastTensorEmbed"} <= kinds and "Allegro_Module" not in kinds
        return model


class TestModel(FastAllegro):
    test_numeric_gradient_partial = pytest.mark.slow(FastAllegro.test_numeric_gradient_partial)


@pytest.mark.slow
class TestASEIntegration(ASEIntegrationMixin, FastAllegro):
    """Trains, packages, compiles with the modifier, and compares to the saved stock model."""

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls):
        return {**CONFIG, **VARIANTS["one layer"]}  # it trains on 256 atoms

    @pytest.fixture(scope="class", params=["minimal_toy_emt.yaml"])  # the other needs a download
    @classmethod
    def conffile(cls, request):
        return request.param

    @pytest.fixture(scope="class")
    @classmethod
    def ase_compile_modifiers(cls):
        return lambda *_: [MODIFIER]


del FastAllegro, EnergyModelTestsMixin, ASEIntegrationMixin  # collected by their names otherwise

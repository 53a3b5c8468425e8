"""What is changed in a model before or after the swap is run, or is an error; never passed by."""

import copy

import pytest
import torch
from nequip.nn import GraphModuleMixin
from nequip_cases import build, outputs, relative_error, structures

import fastmlip

pytestmark = [pytest.mark.usefixtures("nequip_state"), pytest.mark.filterwarnings("ignore")]
SMALL = {"num_features": [9, 4], "num_layers": 2, "type_embed_num_features": 9, "l_max": 1}


def make():
    return build("tiny", "float64", parity=False, radial_mlp_width=8, **SMALL)


@pytest.fixture(scope="module")
def frames():
    return structures()


def assert_same(got, want, bound=1e-12):
    for name in ("atomic_energy", "forces", "stress"):
        assert relative_error(got[name], want[name]) <= bound, name


def part(model, path):
    return model.get_submodule(f"model.func.{path}")


class Scaled(torch.nn.Module):
    def forward(self, weight):
        return 1.3 * weight


def scaled(path):
    def change(model):
        parametrize = torch.nn.utils.parametrize.register_parametrization
        parametrize(part(model, path).requires_grad_(False), "weight", Scaled())

    return change


def doubled(path):
    def change(model):
        def double(module, args, data):
            return {**data, "edge_embedding": 2 * data["edge_embedding"]}

        part(model, path).register_forward_hook(double)

    return change


def given_others(model):
    def double(module, args):
        return ({**args[0], "edge_embedding": 2 * args[0]["edge_embedding"]},)

    part(model, "layer1_convnet").register_forward_pre_hook(double)


CHANGES = {
    "linear_1": scaled("layer1_convnet.conv.linear_1"),
    "radial network": scaled("layer1_convnet.conv.edge_mlp.mlp.0"),
    "self-connection": scaled("layer1_convnet.conv.sc"),
    "types": scaled("type_embed.embed_module"),
    "Bessel functions": doubled("bessel_encode"),
    "factor": doubled("factor"),
    "layer": given_others,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_after_tabulation_is_an_error(what, frames):
    fast, exact = fastmlip.tabulate(make()), fastmlip.accelerate(make())
    outputs(fast, frames["bulk"])
    stock = make()
    for model in (fast, exact, stock):
        CHANGES[what](model)
    with pytest.raises(RuntimeError, match="a tabulated model cannot run this"):
        outputs(fast, frames["bulk"])
    assert_same(outputs(exact, frames["bulk"]), outputs(stock, frames["bulk"]))


class Spin(GraphModuleMixin, torch.nn.Module):
    def __init__(self, irreps_in):
        super().__init__()
        self._init_irreps(irreps_in=irreps_in)

    def forward(self, data):
        if "spin" in data:
            dst, src = data["edge_index"]
            factor = 1 + 0.3 * data["spin"][dst] * data["spin"][src]
            data["edge_embedding"] = data["edge_embedding"] * factor[:, None]
        return data


def test_what_is_no_function_of_distance_is_not_tabulated(frames):
    model = make()
    rows = dict(model.model.func._modules)
    model.model.func._modules.clear()
    for name, module in rows.items():
        model.model.func._modules[name] = module
        if name == "factor":
            model.model.func._modules["spin"] = Spin(module.irreps_out)
    stock = copy.deepcopy(model)
    data = {**frames["bulk"], "spin": frames["bulk"]["pos"][:, 0].sign()}
    assert_same(outputs(fastmlip.accelerate(model), data), outputs(stock, data))
    with pytest.raises(ValueError, match=r"cannot be tabulated: spin is a .*Spin, whose effect"):
        fastmlip.tabulate(model)


def test_a_norm_factor_of_the_data_is_taken(frames):
    factor = frames["bulk"]["pos"].abs().sum(1, keepdim=True) / 10
    data = {**frames["bulk"], "feature_norm_factor": factor}
    stock, fast = make(), fastmlip.accelerate(make())
    assert_same(outputs(fast, data), outputs(stock, data))


def test_a_class_of_a_known_name_is_known_by_its_code(frames):
    """A package brings its own classes, and its frames may have what the self-check's has not."""
    stock = make()
    embed = part(stock, "type_embed")
    cls = type(embed)

    def forward(self, data):
        data = cls.forward(self, data)
        if "charge" in data:
            data["node_attrs"] = data["node_attrs"] * (1 + data["charge"])
        return data

    changes = {"forward": forward, "__module__": "<torch_package_0>.nequip.nn.embedding"}
    embed.__class__ = type("NodeTypeEmbed", (cls,), changes)
    fast = fastmlip.accelerate(copy.deepcopy(stock))
    data = {**frames["bulk"], "charge": frames["bulk"]["pos"][:, :1]}
    assert_same(outputs(fast, data), outputs(stock, data))

"""What layers of one model share stays in one call of it: nothing leaks, and nobody is passed by.

Energies and forces of models with modules, hooks and adapters that fastmlip does not know, before
and after the swap, are stock's.
"""

import copy
import pickle

import pytest
import torch
from nequip.nn import GraphModuleMixin
from nequip_cases import build, outputs, relative_error, structures

import fastmlip
from fastmlip.integrations.nequip.interaction_block import FastInteractionBlock

pytestmark = [pytest.mark.usefixtures("nequip_state"), pytest.mark.filterwarnings("ignore")]
SMALL = {"num_features": [9, 4], "num_layers": 2, "type_embed_num_features": 9, "l_max": 1}


def make():
    return build("tiny", "float64", parity=False, radial_mlp_width=8, **SMALL)


@pytest.fixture(scope="module")
def frames():
    return structures()


@pytest.fixture(scope="module")
def plain(frames):
    return outputs(make(), frames["bulk"])


def assert_same(got, want, bound=1e-12):
    for name in ("atomic_energy", "forces", "stress"):
        assert relative_error(got[name], want[name]) <= bound, name


def network(model):
    return model.model.func


def blocks(model):
    return [m for m in model.modules() if type(m).__name__.endswith("InteractionBlock")]


# ---------------------------------------------------------------- nothing leaks


def private(data):
    return [key for key in data if "fastmlip" in key]


class Ensemble(torch.nn.Module):
    """Two models in one list, the second on what the first leaves."""

    def __init__(self, *models):
        super().__init__()
        self.models = torch.nn.ModuleList(models)

    def forward(self, data):
        first = network(self.models[0])(dict(data))
        assert not private(first)
        return first, network(self.models[1])(dict(first))


def test_an_ensemble_has_no_private_keys(frames):
    other = {"r_max": 3.0, "num_bessels": 5}
    fast = Ensemble(make(), build("tiny", "float64", **other))
    stock = copy.deepcopy(fast)
    fastmlip.accelerate(fast)
    for got, want in zip(fast(frames["bulk"]), stock(frames["bulk"]), strict=True):
        assert not private(got)
        assert relative_error(got["atomic_energy"], want["atomic_energy"]) < 1e-12
    whole = [model(dict(frames["bulk"])) for model in fast.models]
    assert not any(map(private, whole))


def test_a_block_by_itself_keeps_nothing(frames):
    """Called twice with one dict, edges changed in between, it must not use the former ones."""
    stock, fast = make(), fastmlip.accelerate(make())
    results = []
    for model in (stock, fast):
        kept = {}
        conv = network(model).layer0_convnet.conv  # not the last
        handle = conv.register_forward_pre_hook(lambda _, args: kept.update(args[0]))  # noqa: B023
        model(dict(frames["bulk"]))
        handle.remove()
        data = {k: v for k, v in kept.items() if isinstance(v, torch.Tensor)}
        x = data["node_features"].detach()
        first = conv(data | {"node_features": x})
        assert not private(first)
        first["node_features"] = x
        first["edge_index"] = first["edge_index"].flip(1)
        results.append(conv(first)["node_features"])
        assert not private(first)
    assert relative_error(results[1], results[0]) < 1e-12


def test_an_error_leaves_nothing_behind(frames):
    fast = network(fastmlip.accelerate(make()))
    data = dict(frames["bulk"])
    fast.layer1_convnet.equivariant_nonlin = torch.nn.Module()
    with pytest.raises(NotImplementedError):
        fast(data)
    assert not private(data)


# ---------------------------------------------------------------- nobody is passed by


class Charge(GraphModuleMixin, torch.nn.Module):
    """A module of the user's that changes node attributes."""

    def __init__(self, irreps_in):
        super().__init__()
        self._init_irreps(irreps_in=irreps_in)

    def forward(self, data):
        shift = torch.linspace(0, 1, data["node_attrs"].shape[0])[:, None]
        data["node_attrs"] = data["node_attrs"] + shift
        return data


def insert_charge(model):
    row = network(model)
    row.insert("charge", Charge(row.type_embed.irreps_out), after="type_embed")


def changed_attributes(module, args, data):
    data["node_attrs"] = data["node_attrs"] * torch.linspace(
        0, 1, data["node_attrs"].shape[0]
    ).unsqueeze(1)


def changed_features(module, args, data):
    data["node_features"] = data["node_features"] * 1.5


def changed_output(module, args, output):
    return output * 1.5


def changed_input(module, args):
    return (args[0] * 1.5,)


class Adapter(torch.nn.Module):
    """As of LoRA: it has the weights of what it holds, and adds something."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.more = torch.nn.Linear(1, 1).double()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args):
        return self.base(*args) * 1.5


class Halved(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


def adapt(parent, name):
    setattr(parent, name, Adapter(getattr(parent, name)))


def own_forward(module):
    inside = module.forward
    module.forward = lambda *args: inside(*args) * 1.5


def hook(module):
    module.register_forward_hook(changed_output)


CHANGES = {
    "module between": insert_charge,
    "hook on NodeTypeEmbed": lambda m: network(m).type_embed.register_forward_hook(
        changed_attributes
    ),
    "hook on a layer": lambda m: network(m).layer0_convnet.register_forward_hook(
        changed_attributes
    ),
    "hook on a block": lambda m: blocks(m)[0].register_forward_hook(changed_attributes),
    "hook on ghost_exchange": lambda m: blocks(m)[1].ghost_exchange.register_forward_hook(
        changed_features
    ),
    "hook on the embedding": lambda m: hook(network(m).type_embed.embed_module),
    "hook on linear_1": lambda m: hook(blocks(m)[1].linear_1),
    "pre-hook on linear_2": lambda m: blocks(m)[1].linear_2.register_forward_pre_hook(
        changed_input
    ),
    "hook on edge_mlp": lambda m: hook(blocks(m)[1].edge_mlp),
    "hook on a radial layer": lambda m: hook(blocks(m)[1].edge_mlp.mlp[0]),
    "hook on an activation": lambda m: hook(blocks(m)[1].edge_mlp.mlp[1]),
    "hook on sc": lambda m: hook(blocks(m)[1].sc),
    "hook on tp_scatter": lambda m: hook(blocks(m)[1].tp_scatter),
    "hook in a gate": lambda m: hook(network(m).layer1_convnet.equivariant_nonlin.act_scalars),
    "adapter for linear_1": lambda m: adapt(blocks(m)[1], "linear_1"),
    "adapter for sc": lambda m: adapt(blocks(m)[1], "sc"),
    "adapter for a radial layer": lambda m: adapt(blocks(m)[1].edge_mlp.mlp, "0"),
    "adapter for edge_mlp": lambda m: adapt(blocks(m)[1], "edge_mlp"),
    "adapter for the embedding": lambda m: adapt(network(m).type_embed, "embed_module"),
    "adapter in a gate": lambda m: adapt(network(m).layer0_convnet.equivariant_nonlin, "mul"),
    "forward of linear_2": lambda m: own_forward(blocks(m)[1].linear_2),
    "parametrised linear_1": lambda m: torch.nn.utils.parametrize.register_parametrization(
        blocks(m)[1].linear_1, "weight", Halved()
    ),
    "parametrised sc": lambda m: torch.nn.utils.parametrize.register_parametrization(
        blocks(m)[1].sc, "weight", Halved()
    ),
    "parametrised radial layer": lambda m: torch.nn.utils.parametrize.register_parametrization(
        blocks(m)[1].edge_mlp.mlp[0], "weight", Halved()
    ),
    "parametrised embedding": lambda m: torch.nn.utils.parametrize.register_parametrization(
        network(m).type_embed.embed_module, "weight", Halved()
    ),
}
STOCK_ONLY = {
    "hook on e3nn's product": lambda m: hook(blocks(m)[1].tp_scatter.tp),
    "hook on harmonics": lambda m: hook(network(m).spharm.sh),
    "forward of a gate": lambda m: own_forward(network(m).layer1_convnet.equivariant_nonlin),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", [*CHANGES, *STOCK_ONLY])
def test_modules_hooks_and_adapters_do_what_they_do_in_stock(change, when, frames, plain):
    if change in STOCK_ONLY and when == "after":
        pytest.skip("it is not there after the swap, or has a test of its own")
    apply = (CHANGES | STOCK_ONLY)[change]
    stock, fast = make(), make()
    apply(stock)
    if when == "before":
        apply(fast)
    fastmlip.accelerate(fast)
    if when == "after":
        outputs(fast, frames["own images"])  # a look at it before the change must not count
        apply(fast)
    want, got = outputs(stock, frames["bulk"]), outputs(fast, frames["bulk"])
    assert relative_error(plain["forces"], want["forces"]) > 1e-6
    assert_same(got, want)
    assert any(isinstance(m, FastInteractionBlock) for m in fast.modules())


def test_the_summary_says_why():
    model = make()
    hook(blocks(model)[1].linear_1)
    insert_charge(model)
    rows = {row.path: row for row in fastmlip.summary(fastmlip.accelerate(model))}
    kept = rows["model.func.layer1_convnet.conv"]
    assert kept.status == "kept" and "its linear_1: a forward hook on it" in kept.reason
    assert "Charge, whose effect on the data is not known" in rows["model.func"].reason


def test_a_hook_on_a_product_that_only_holds_keys_is_an_error(frames):
    fast = fastmlip.accelerate(make())
    hook(blocks(fast)[0].linear_1)  # so that the host's forward calls tp_scatter
    hook(blocks(fast)[0].tp_scatter.tp)
    with pytest.raises(RuntimeError, match="its tp: a forward hook on it, which would not run"):
        fast(dict(frames["bulk"]))


def test_a_tabulated_model_refuses_what_it_cannot_run(frames):
    fast = fastmlip.tabulate(make())
    hook(blocks(fast)[1].edge_mlp)
    with pytest.raises(RuntimeError, match="its edge_mlp: a forward hook on it"):
        fast(dict(frames["bulk"]))


def test_a_removed_hook_is_forgotten(frames, monkeypatch):
    fast, calls = fastmlip.accelerate(make()), []
    outputs(fast, frames["bulk"])
    handle = blocks(fast)[1].linear_1.register_forward_hook(lambda *_: calls.append(1))
    outputs(fast, frames["bulk"])
    assert len(calls) == 1
    handle.remove()
    assert network(fast).what_is_shared() == ("", "type_embed", "")
    outputs(fast, frames["bulk"])
    assert len(calls) == 1


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_looks_at_its_own_modules(way, frames):
    fast = fastmlip.accelerate(make())
    want = outputs(fast, frames["bulk"])
    copied = copy.deepcopy(fast) if way == "deepcopy" else pickle.loads(pickle.dumps(fast))
    assert_same(outputs(copied, frames["bulk"]), want, 0.0)
    hook(blocks(copied)[1].linear_1)
    assert relative_error(outputs(copied, frames["bulk"])["forces"], want["forces"]) > 1e-3
    assert_same(outputs(fast, frames["bulk"]), want, 0.0)

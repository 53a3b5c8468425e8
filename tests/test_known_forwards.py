"""Only forwards that are known are swapped, and nothing that was added to a module is lost."""

import copy
import functools

import pytest
import torch
from nequip.nn import _tp_scatter_base
from nequip_cases import build, outputs, structures

import fastmlip
from fastmlip.integrations import forwards, swap
from fastmlip.integrations.fingerprints import installed
from fastmlip.integrations.nequip import HOST
from fastmlip.integrations.nequip.forwards import KNOWN

pytestmark = pytest.mark.usefixtures("nequip_state")
ZBL = {"units": "metal", "chemical_species": ["Na", "Cl", "O"]}


@pytest.fixture(scope="module")
def stock():
    return build(
        "tiny", "float64", pair_potential={"_target_": "nequip.nn.pair_potential.ZBL", **ZBL}
    )


@pytest.fixture
def model(stock):
    return copy.deepcopy(stock)


def first(model, name):
    return next(m for m in model.modules() if type(m).__name__ == name)


def rows(model):
    return {row.path: row for row in swap.report(model)}


def path_of(model, module):
    return next(path for path, m in model.named_modules() if m is module)


def test_the_installed_versions_are_known():
    rows = list(installed())
    assert {path.partition(".")[0] for path, *_ in rows} >= {"nequip", "allegro", "sevenn", "e3nn"}
    unknown = [(path, found, version) for path, found, version, known in rows if not known]
    assert not unknown, "run `make fingerprints`, see CONTRIBUTING.md"


def test_all_of_a_stock_model_is_known(model):
    assert {row.status for row in rows(model).values()} == {"ready"}
    swapped = {row.module for row in rows(model).values()}
    assert swapped == {*HOST.swaps} - {"SphericalHarmonics"}


def test_comments_annotations_and_docstrings_are_not_code(tmp_path, monkeypatch):
    texts = [
        "import torch\nclass A(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x + helper(x)\ndef helper(x):\n    return 2 * x\n",
        "import torch\nclass A(torch.nn.Module):\n    def forward(self, x: int) -> int:\n"
        "        '''What it does.'''\n        # why\n        return (x\n            + helper(x))\n"
        "def helper(x):\n    return 2*x\n",
        "import torch\nclass A(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x + helper(x)\ndef helper(x):\n    return 3 * x\n",
    ]
    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for number, text in enumerate(texts):
        (tmp_path / f"of_version_{number}.py").write_text(text)
        prints.append(forwards.fingerprint(__import__(f"of_version_{number}").A))
    assert prints[0] == prints[1] != prints[2]


# ---------------------------------------------------------------- classes of the same name


def test_another_forward_is_kept(model):
    """The one of the issue: tanh before linear_2."""
    block = first(model, "InteractionBlock")
    cls = type(block)

    def forward(self, data):
        data = cls.forward(self, data)
        data["node_features"] = torch.tanh(data["node_features"])
        return data

    block.__class__ = type("InteractionBlock", (cls,), {"forward": forward})
    was = outputs(model, structures()["own images"])
    with pytest.warns(UserWarning, match="differs from that of nequip 0.19.0 to 0.19.1"):
        fastmlip.accelerate(model)
    assert first(model, "InteractionBlock") is block
    found = outputs(model, structures()["own images"])
    assert torch.allclose(found["forces"], was["forces"], rtol=1e-10, atol=1e-12)


def test_doubled_forces_are_kept(model):
    output = first(model, "ForceStressOutput")
    cls = type(output)

    def forward(self, data):
        data = cls.forward(self, data)
        data["forces"] = 2 * data["forces"]
        return data

    output.__class__ = type("ForceStressOutput", (cls,), {"forward": forward})
    assert "differs from that of nequip 0.19.1" in rows(model)["model"].reason


@pytest.mark.parametrize("name", [n for n in HOST.swaps if n != "SphericalHarmonics"])
def test_every_class_is_looked_at(model, name):
    module = first(model, name)

    def forward(self, *args):
        return super(type(self), self).forward(*args)

    module.__class__ = type(name, (type(module),), {"forward": forward})
    row = rows(model).get(path_of(model, module))
    # one without a row of its own is left as it is, and so is the chain that it is in
    assert row is None or (row.status == "kept" and "unknown version" in row.reason)
    assert fastmlip.accelerate(model) is model
    assert first(model, name) is module


def test_a_patched_class_is_kept(model, monkeypatch):
    cls = type(first(model, "Gate"))
    old = cls.forward

    @functools.wraps(old)
    def forward(self, features):
        return 2 * old(self, features)

    monkeypatch.setattr(cls, "forward", forward)
    reason = rows(model)["model.func.layer0_convnet.equivariant_nonlin"].reason
    assert "Gate of an unknown version" in reason


def test_a_patched_function_is_seen(model, monkeypatch):
    def scatter(src, index, dim=0, dim_size=None):
        return 0 * src

    scatter.__module__ = "nequip.nn.utils"
    monkeypatch.setattr(_tp_scatter_base, "scatter", scatter)
    found = rows(model)
    reason = found["model.func.layer0_convnet.conv.tp_scatter"].reason
    assert "TensorProductScatter of an unknown version" in reason
    assert "model.func.layer0_convnet.conv" not in found  # it needs the product


def test_an_overridden_helper_is_seen(model):
    block = first(model, "InteractionBlock")

    def _get_mliap_num_local(self, data):
        return 1

    new = {"_get_mliap_num_local": _get_mliap_num_local}
    block.__class__ = type("InteractionBlock", (type(block),), new)
    assert "unknown version" in rows(model)[path_of(model, block)].reason


def test_without_source_it_is_kept(model):
    scope = {}
    exec("def forward(self, features):\n    return features", scope)
    gate = first(model, "Gate")
    gate.__class__ = type("Gate", (type(gate),), {"forward": scope["forward"]})
    assert "cannot be told: there is no source" in rows(model)[path_of(model, gate)].reason


# ---------------------------------------------------------------- what was added to instances


def hook(*_):
    return None


ADDED = {
    "forward hook": lambda m: m.register_forward_hook(hook),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(hook),
    "backward hook": lambda m: m.register_full_backward_hook(hook),
    "forward was set on the instance": lambda m: setattr(m, "forward", m.forward),
}


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize(
    "path",
    ["layer0_convnet.conv.tp_scatter", "layer0_convnet.conv.tp_scatter.tp", "zbl", "bessel_encode",
     "layer1_convnet.conv.linear_2", "layer1_convnet.conv.edge_mlp.mlp.0",
     "layer1_convnet.conv.sc", "layer0_convnet.equivariant_nonlin.act_gates"],
)  # fmt: skip
def test_nothing_added_is_lost(model, path, added):
    path = path.replace("zbl", "pair_potential")
    module = model.get_submodule(f"model.func.{path}")
    ADDED[added](module)
    reasons = [row.reason for row in rows(model).values() if row.status == "kept"]
    assert any(added in reason for reason in reasons)
    with pytest.warns(UserWarning, match=added):
        fastmlip.accelerate(model)
    kept = [row.path for row in rows(model).values() if row.status == "kept"]
    assert any(f"model.func.{path}".startswith(where) for where in kept)


def test_hooks_of_a_module_that_keeps_them_still_run(model):
    calls = []
    block = first(model, "InteractionBlock")
    block.register_forward_hook(lambda *_: calls.append(1))
    fastmlip.accelerate(model)
    outputs(model, structures()["own images"])
    assert rows(model)["model.func.layer0_convnet.conv"].status == "swapped" and calls


@pytest.mark.parametrize("at", ["spharm", "edge_norm", "bessel_encode"])
def test_a_chain_with_a_hook_is_no_chain(model, at):
    calls = []
    model.get_submodule(f"model.func.{at}").register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning) if at != "spharm" else pytest.MonkeyPatch.context():
        fastmlip.accelerate(model, self_check=False)
    outputs(model, structures()["own images"])
    assert calls


def test_an_adapter_in_place_of_a_linear_layer_is_kept(model):
    block = first(model, "InteractionBlock")

    class Adapter(type(block.linear_1)):
        def forward(self, x):
            return 2 * super().forward(x)

    block.linear_1.__class__ = Adapter
    reason = rows(model)[path_of(model, block)].reason
    assert reason == "its linear_1 is a test_known_forwards.Adapter, not a Linear"


def test_tables_name_importable_classes():
    assert all(path.startswith(("nequip.", "e3nn.")) for path in KNOWN)

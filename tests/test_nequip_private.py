"""The contract of every private use of NequIP, and what happens where it is broken."""

import importlib

import pytest
import torch
from nequip_cases import build

from fastmlip.integrations.nequip import private, tabulate

pytestmark = pytest.mark.usefixtures("nequip_state")
MODULE = "nequip.utils.global_state"


def without(monkeypatch, path):
    module, _, name = path.rpartition(".")
    monkeypatch.delattr(importlib.import_module(module), name)


def test_workflow_state(monkeypatch):
    assert private.workflow_state() is None
    from nequip.scripts._workflow_utils import set_workflow_state

    set_workflow_state("train")
    try:
        assert private.workflow_state() == "train"
        with pytest.raises(ValueError, match="cannot be trained"):
            tabulate.refuse_training()
    finally:
        set_workflow_state(None)
    without(monkeypatch, "nequip.scripts._workflow_utils.get_workflow_state")
    assert private.workflow_state() is None
    tabulate.refuse_training()


def test_float64_default(monkeypatch):
    torch.set_default_dtype(torch.float32)
    with private.float64_default():
        assert torch.get_default_dtype() is torch.float64
    assert torch.get_default_dtype() is torch.float32
    torch.set_default_dtype(torch.float64)


def test_stock_and_eager():
    with private.stock_and_eager():
        model = build("tiny", "float64", compile_mode="compile")
    assert not model.is_compile_graph_model


def test_cutoffs_by_type():
    text = build("tiny", "float64", per_edge_type_cutoff={"Na": 2.0}).metadata[
        "per_edge_type_cutoff"
    ]
    found = private.cutoffs_by_type(text, ["Na", "Cl", "O"])
    assert found["Na"]["Cl"] == 2.0 and found["Cl"]["Na"] == 3.6


def test_compiled_models():
    model = build("tiny", "float64", compile_mode="compile")
    assert private.graph_model_forward(model).__func__.__qualname__ == "GraphModel.forward"
    eager = build("tiny", "float64")
    assert private.graph_model_forward(eager) is eager
    del model._compiled_cache
    with pytest.raises(private.MissingInNequIPError, match="keeps what it compiled where"):
        private.drop_compiled(model)
    private.drop_compiled(eager)


def test_model_modifier():
    class Holder:
        @private.model_modifier()(persistent=False, private=False)
        @classmethod
        def enable(cls, model):
            return model

    assert Holder.enable(1) == 1


@pytest.mark.parametrize(
    ("path", "call", "instead"),
    [
        ("nequip.model.modify_utils.only_apply_persistent_modifiers",
         lambda: private.stock_and_eager().__enter__(), "load the model yourself"),
        ("nequip.model.utils.override_model_compile_mode",
         lambda: private.stock_and_eager().__enter__(), "load the model yourself"),
        ("nequip.utils.global_state.get_latest_global_state",
         lambda: private.float64_default().__enter__(), "in memory"),
        ("nequip.utils.global_state.set_global_state",
         lambda: private.float64_default().__enter__(), "in memory"),
        ("nequip.nn.embedding.utils.cutoff_str_to_fulldict",
         lambda: private.cutoffs_by_type("", []), "cutoffs by pair"),
        ("nequip.model.inference_models.load_compiled_model",
         lambda: private.load_compiled("", ""), "compiled from"),
        ("nequip.scripts.compile.main", lambda: private.nequip_compile(["a", "--b"]),
         "run `nequip-compile a --b`"),
        ("nequip.utils.fx._nequip_make_fx", lambda: private.traced(None, []),
         "a version of NequIP"),
        ("nequip.nn.model_modifier_utils.model_modifier", private.model_modifier,
         r"call fastmlip.accelerate\(model\)"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(monkeypatch, path, call, instead):
    without(monkeypatch, path)
    with pytest.raises(private.MissingInNequIPError, match=f"NequIP .* has no {path}.*{instead}"):
        call()

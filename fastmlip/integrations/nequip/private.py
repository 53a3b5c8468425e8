"""All of NequIP that is used here and that its documentation does not promise to keep.

Each use says what happens in a version without it: the public way, or an error that names the
version and what to do. ``tests/test_nequip_private.py`` holds the contract of each, CONTRIBUTING.md
lists them; those of the plug-in are in ``fastmlip_nequip_plugin.py`` itself. The attributes of
swapped modules are checked where they are swapped, and their code, with functions that it calls
such as ``with_edge_vectors_``, is known by its fingerprint.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


class MissingInNequIPError(RuntimeError):
    """The installed NequIP has no longer what fastmlip uses of it."""


def _get(path: str, instead: str) -> Any:
    """A function of NequIP's by its path, or an error that says what to do ``instead``."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        version = importlib.metadata.version("nequip")
        raise MissingInNequIPError(
            f"NequIP {version} has no {path}, which this version of fastmlip uses: {instead}"
        ) from error


def workflow_state() -> str | None:
    """``train``, ``compile`` or ``package`` inside NequIP's commands; None outside them, and where
    it cannot be told: tabulated layers refuse by themselves to be trained."""
    try:
        get = _get("nequip.scripts._workflow_utils.get_workflow_state", "")
    except MissingInNequIPError:
        return None
    return get()


@contextlib.contextmanager
def stock_and_eager() -> Iterator[None]:
    """Models built inside have no modifiers that only accelerate, and do not compile themselves."""
    instead = "load the model yourself, without modifiers, and pass it in place of the file"
    persistent = _get("nequip.model.modify_utils.only_apply_persistent_modifiers", instead)
    compile_mode = _get("nequip.model.utils.override_model_compile_mode", instead)
    with persistent(True), compile_mode("eager"):
        yield


@contextlib.contextmanager
def float64_default() -> Iterator[None]:
    """NequIP's global state, and the default dtype it needs, inside the block only."""
    instead = "call it inside NequIP's own set-up, and in memory"
    latest = _get("nequip.utils.global_state.get_latest_global_state", instead)
    set_state = _get("nequip.utils.global_state.set_global_state", instead)
    before = torch.get_default_dtype()
    try:
        set_state(**latest())
        torch.set_default_dtype(torch.float64)  # NequIP sets it in its first call only
        yield
    finally:
        torch.set_default_dtype(before)


def cutoffs_by_type(text: str, type_names: list[str]) -> dict[str, Any]:
    """A model's metadatum ``per_edge_type_cutoff`` as a dict."""
    instead = "models with cutoffs by pair of types cannot be fed by this version"
    return _get("nequip.nn.embedding.utils.cutoff_str_to_fulldict", instead)(text, type_names)


def load_compiled(path: str, device: str) -> tuple[Any, dict[str, Any]]:
    """A compiled model and its metadata."""
    instead = "compare the model that it was compiled from"
    load = _get("nequip.model.inference_models.load_compiled_model", instead)
    try:
        return load(path, device)
    except RuntimeError as error:
        if "fastmlip::" not in str(error):
            raise
        raise ValueError(
            f"{path} was compiled with another version of fastmlip than this one: compile it again "
            f"({str(error).splitlines()[0]})"
        ) from error


def nequip_compile(arguments: list[str]) -> None:
    """The command ``nequip-compile``."""
    command = f"run `nequip-compile {' '.join(arguments)}`, which uses the default tolerance"
    _get("nequip.scripts.compile.main", command)(arguments)


def traced(model: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Any:
    """A graph of ``model`` with the gradients inside, for tensors of any sizes."""
    instead = "export the model with a version of NequIP that it was tested with"
    return _get("nequip.utils.fx._nequip_make_fx", instead)(model, list(inputs))


def logger() -> Any:
    """Of one process of several, as NequIP's own messages."""
    try:
        return _get("nequip.utils.logger.RankedLogger", "")("fastmlip", rank_zero_only=True)
    except MissingInNequIPError:
        return logging.getLogger("fastmlip")


def model_modifier() -> Callable[..., Any]:
    """The decorator of modifiers."""
    return _get("nequip.nn.model_modifier_utils.model_modifier", "call fastmlip.accelerate(model)")


def graph_model_forward(model: Any) -> Callable[..., Any]:
    """What a model runs; of one with ``compile_mode: compile``, its eager form."""
    if not getattr(model, "is_compile_graph_model", False):
        return model
    cls: Any
    for cls in type(model).__mro__:
        if cls.__name__ == "GraphModel":
            return cls.forward.__get__(model)
    raise MissingInNequIPError(
        f"{type(model).__name__} is not derived from GraphModel, so its eager form is not known: "
        "build it with compile_mode: eager"
    )


def drop_compiled(model: torch.nn.Module) -> None:
    """Forget what ``compile_mode: compile`` compiled; it compiles again."""
    module: Any
    for module in model.modules():
        if hasattr(module, "_compiled_cache"):
            module._compiled_cache[0].clear()
            module.weight_names = module.buffer_names = None
        elif getattr(type(module), "is_compile_graph_model", False):
            raise MissingInNequIPError(
                f"{type(module).__name__} keeps what it compiled where fastmlip does not know: "
                "swap modules in a model with compile_mode: eager"
            )

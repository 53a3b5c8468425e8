"""What model files say of themselves, read without executing anything in them, and checkpoints
without fastmlip."""

from __future__ import annotations

import copy
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch

from fastmlip.integrations.host import readable
from fastmlip.integrations.nequip.energies import by_type_name
from fastmlip.integrations.nequip.models import read_checkpoint
from fastmlip.torch_private import PACKAGE_LOGGER

MODIFIERS = "enable_FastMLIP"  # what the names of our modifiers begin with
LIBRARIES = "nequip_custom_ops_libs"


def metadata(path: Path) -> dict[str, str]:
    """Question and answer, of a checkpoint, a package or a compiled model.

    Raises:
        ValueError: another kind of file, or one that cannot be read.
    """
    for suffix, (kind, reader) in _READERS.items():
        if path.name.endswith(suffix):
            with readable(path, kind):
                return {"file": str(path), "kind": kind, **reader(path)}
    raise ValueError(f"{path}: expected a file that ends in {', '.join(_READERS)}")


def _of_checkpoint(path: Path) -> dict[str, str]:
    saved = read_checkpoint(path)
    settings = saved["hyper_parameters"]["model"]
    about = {"modifiers": ", ".join(_modifiers(settings)) or "none"}
    model = settings
    while isinstance(model.get("model"), dict):
        model = model["model"]
    about |= {key: str(value) for key, value in model.items()}
    about["epoch"] = str(saved.get("epoch", "unknown"))
    tensors = [t for name, t in saved["state_dict"].items() if name.startswith("model.")]
    about["numbers in the model"] = f"{sum(torch.as_tensor(t).numel() for t in tensors):,}"
    return about


def _of_package(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith("model/package_metadata.txt")]
        if not names:
            raise ValueError(f"{path} is no package of NequIP's: it has no package_metadata.txt")
        text = archive.read(names[0]).decode()
    import yaml

    return {str(key): str(value) for key, value in yaml.safe_load(text).items()}


def _of_compiled(path: Path) -> dict[str, str]:
    about: dict[str, str] = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("wrapper_metadata.json"):
                about |= {key: str(value) for key, value in json.loads(archive.read(name)).items()}
    for library in about.get(LIBRARIES, "").split():
        about[f"needs {library}"] = _installed(library)
    return about


def _installed(library: str) -> str:
    from importlib import metadata

    try:
        return f"{metadata.version(library)} is installed"
    except metadata.PackageNotFoundError:
        return "is NOT installed: the model will not load"


class _NotOutdated(logging.Filter):
    """Takes out the next message that calls a compiled model outdated, and then itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        if "outdated pt2 file" not in record.getMessage():
            return True
        _LOADING.removeFilter(self)
        return False


_LOADING = logging.getLogger(PACKAGE_LOGGER)
_not_outdated = _NotOutdated()


def expect_list_of_libraries(path: str | Path) -> None:
    """Before torch loads a compiled model: its archive may hold NequIP's list of libraries beside
    the model's folder, and then torch takes another way to load it, with a message that tells users
    to make it again. Where that list is all there is beside the folder, this is said of nothing."""
    _LOADING.removeFilter(_not_outdated)
    listed = f"{LIBRARIES}.txt"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if listed not in names or "fastmlip" not in archive.read(listed).decode().split():
            return
    if len({name.split("/")[0] for name in names if name != listed}) == 1:
        _LOADING.addFilter(_not_outdated)


_READERS = {
    ".ckpt": ("checkpoint", _of_checkpoint),
    ".nequip.zip": ("package", _of_package),
    ".nequip.pt2": ("compiled model", _of_compiled),
    ".lammps.pt2": ("compiled model for LAMMPS", _of_compiled),
}


def strip(path: Path, output: Path) -> list[str]:
    """Write a checkpoint with the same weights, whose config has no modifier of fastmlip.

    Returns:
        The modifiers that were taken out.

    Raises:
        ValueError: not a checkpoint of NequIP's, nothing to take out, or a module of fastmlip that
            the config names itself, such as ``fastmlip.nn.ZBL``, which no other can replace.
    """
    with readable(path, "checkpoint"):
        saved = copy.copy(read_checkpoint(path))
    removed = sorted({name for name in _modifiers(saved) if name.startswith(MODIFIERS)})
    if not removed:
        raise ValueError(f"{path} has no modifier of fastmlip, it needs no stripping")
    saved["hyper_parameters"] = _without(saved["hyper_parameters"])
    if left := sorted(_targets(saved["hyper_parameters"]["model"])):
        raise ValueError(
            f"{path}: its config names {', '.join(left)}, which are part of fastmlip; train with "
            "the modules of NequIP in their place to do without it"
        )
    torch.save(saved, output)
    return removed


def _modifiers(node: Any) -> list[str]:
    """Names of all modifiers in nested dicts and lists."""
    if isinstance(node, dict):
        own = [str(node["modifier"])] if "modifier" in node else []
        return own + [name for value in node.values() for name in _modifiers(value)]
    return [name for value in node for name in _modifiers(value)] if isinstance(node, list) else []


def _targets(node: Any) -> set[str]:
    """Targets of fastmlip's in nested dicts and lists."""
    if isinstance(node, dict):
        found = {
            str(v) for k, v in node.items() if k == "_target_" and str(v).startswith("fastmlip.")
        }
        return found.union(*map(_targets, node.values()))
    return set().union(*map(_targets, node)) if isinstance(node, list) else set()


def _without(node: Any) -> Any:
    """The config without our modifiers, and without a ``nequip.model.modify`` that has no other."""
    if isinstance(node, list):
        return [_without(value) for value in node]
    if not isinstance(node, dict):
        return node
    node = {key: _without(value) for key, value in node.items()}
    if isinstance(node.get("modifiers"), list) and "model" in node:
        others = [
            m for m in node["modifiers"] if not str(m.get("modifier", "")).startswith(MODIFIERS)
        ]
        if len(others) < len(node["modifiers"]):
            node["modifiers"], node["model"] = others, by_type_name(node["model"])
        if not others:
            return node["model"]
    return node

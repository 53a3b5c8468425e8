"""A NequIP config as ``nequip-train`` reads it, without its data."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUM_NEIGHBORS = 20.0
SCALE, SHIFT = 1.0, -1.0
STEP = 0.1  # from one type to the next: the same value for all would hide a wrong type


def compose(path: Path) -> Any:
    """The config, not yet resolved; Hydra's defaults lists and overrides of other files work."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(path.parent.resolve()), version_base=None):
        return compose(path.stem)


def find(node: Any, key: str) -> Any:
    """The first value under ``key`` in nested dicts and lists."""
    if isinstance(node, dict) and key in node:
        return node[key]
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return next((found for value in inner if (found := find(value, key))), None)


@contextlib.contextmanager
def placeholder_statistics(config: Any) -> Iterator[dict[str, Any]]:
    """Resolve ``${training_data_stats:NAME}`` without the data; yields what was asked for.

    A number of neighbours is 20; a scale (a mean square or a deviation) is 1 and a shift -1, in
    steps of 0.1 from type to type where they are per type.

    Raises:
        ValueError: a name that the config's ``stats_manager`` does not compute, at which
            ``nequip-train`` would stop.
    """
    from omegaconf import OmegaConf

    asked: dict[str, Any] = {}
    offered = _statistics(config)

    def value(name: str) -> Any:
        if offered is not None and name not in offered:
            near = difflib.get_close_matches(name, offered, 1)
            raise ValueError(
                f"${{training_data_stats:{name}}}: the config's stats_manager has no such statistic"
                + (f" (did you mean {near[0]}?)" if near else "")
                + f"; it has {', '.join(offered) or 'none, as data.stats_manager is not set'}"
            )
        spread = any(word in name for word in ("rms", "std", "scale"))
        base = NUM_NEIGHBORS if "neighbors" in name else SCALE if spread else SHIFT
        per_type = name.startswith("per_type") or name == "isolated_atom_energies"
        names = _type_names(config) if per_type else []
        asked[name] = {t: base + STEP * i for i, t in enumerate(names)} if per_type else base
        return asked[name]

    OmegaConf.register_new_resolver("training_data_stats", value, replace=True)
    try:
        yield asked
    finally:
        OmegaConf.clear_resolver("training_data_stats")


def _statistics(config: Any) -> list[str] | None:
    """Names of the statistics that the config's manager computes; None for a manager whose names
    cannot be known, and for a config without data."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if "data" not in config:
        return None
    manager = OmegaConf.select(config, "data.stats_manager", throw_on_missing=False)
    if manager is None:
        return []
    names = getattr(instantiate(OmegaConf.to_container(manager, resolve=True)), "names", None)
    return None if names is None else list(names)


def _type_names(config: Any) -> list[str]:
    node = config.training_module.model
    while node is not None and "type_names" not in node.keys():  # noqa: SIM118 (`in` follows interpolations)
        node = node.get("model")
    if node is None:
        raise ValueError("the config's model has no `type_names`")
    return [str(name) for name in node.type_names]

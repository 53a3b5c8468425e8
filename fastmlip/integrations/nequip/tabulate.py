"""Splines in the place of the radial networks of a NequIP model, refined until forces agree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from fastmlip.integrations.host import TOLERANCE
from fastmlip.integrations.inner import Look
from fastmlip.integrations.nequip.edge_embedding import FastBesselEdgeLengthEncoding
from fastmlip.integrations.nequip.files import metadata
from fastmlip.integrations.nequip.interaction_block import (
    FastInteractionBlock,
    folds,
    table_kinds,
)
from fastmlip.integrations.nequip.models import host_model
from fastmlip.integrations.nequip.private import nequip_compile, workflow_state
from fastmlip.integrations.nequip.sequential_graph_network import (
    FastSequentialGraphNetwork,
    table_parts,
    unseen_by_tables,
)
from fastmlip.integrations.refine import positive, refine, refuse_states
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.ops._edge_embedding_reference import radial as bessel_embedding

#: of the modifier ``enable_FastMLIP_tabulated``, which NequIP's commands name without arguments
default_tolerance: ContextVar[float] = ContextVar("default_tolerance", default=TOLERANCE)
default_structures: ContextVar[Any] = ContextVar("default_structures", default=None)


def refuse_training() -> None:
    """For the modifier: ``nequip-train`` must not tabulate what it is to train."""
    if workflow_state() == "train":
        raise ValueError(
            "enable_FastMLIP_tabulated: tabulated models cannot be trained; name enable_FastMLIP "
            "in the config, and this modifier when the trained model is compiled"
        )


def tolerance(tol: float | None) -> float:
    """``tol``, checked, or the default."""
    return positive(default_tolerance.get() if tol is None else tol)


def tabulate_(
    model: Any, tol: float | None = None, structures: Iterable[Any] | None = None
) -> None:
    """Tabulate an accelerated model in place; :func:`fastmlip.tabulate` describes it."""
    tol = tolerance(tol)
    blocks: list[Any] = [m for m in model.modules() if isinstance(m, FastInteractionBlock)]
    bessels = [m for m in model.modules() if isinstance(m, FastBesselEdgeLengthEncoding)]
    if not blocks or len(bessels) != 1:
        raise ValueError(
            f"model: nothing to tabulate in {type(model).__name__}: it has {len(blocks)} "
            "interaction blocks and "
            f"{len(bessels)} Bessel embeddings that fastmlip accelerates (see fastmlip.summary)"
        )
    rows: list[Any] = [m for m in model.modules() if isinstance(m, FastSequentialGraphNetwork)]
    for network in rows:
        network.tabulated = []
        if unseen := unseen_by_tables(network):
            raise ValueError(f"model: it cannot be tabulated: {unseen}")
    for block in blocks:
        block.spline, block.look = None, Look()
        block.tabulated = table_kinds(block)
        for folding in block.maps.values():
            folding.folded = None
        while block.refusals:
            block.refusals.pop().remove()
    model.requires_grad_(False).eval()
    dtype = next(blocks[0].linear_1.parameters()).dtype
    networks = [_network(block, bessels[0]) for block in blocks]

    def fit(intervals: int) -> None:
        for block, network in zip(blocks, networks, strict=True):
            spline = RadialSpline(RadialSpline.fit(network, intervals).to(dtype))
            block.spline = spline.to(next(block.edge_mlp.parameters()).device)

    try:
        found = refine(host_model(model), fit, tol, structures)
    except BaseException:
        for block in blocks:
            block.spline = None
        raise
    errors = [
        RadialSpline.error(block.spline.coefficients(), network)
        for block, network in zip(blocks, networks, strict=True)
    ]
    about = found.metadata(tol, errors)
    for block in blocks:
        for name in ("linear_1", "linear_2"):
            block.maps[name].folded = block.maps[name].fold(getattr(block, name))
        block.is_named_in_metadata = block is blocks[-1]
        block.table_metadata = about
    _fold_self_connections(model)
    for network in rows:
        network.tabulated = [type(part).__name__ for _, part in table_parts(network)]
        network.look = Look()
    blocks[-1].refusals = refuse_states(model)


def _fold_self_connections(model: torch.nn.Module) -> None:
    networks: list[Any] = [m for m in model.modules() if isinstance(m, FastSequentialGraphNetwork)]
    for network in networks:
        _, path, _ = network.what_is_shared()
        embed = network.get_submodule(path) if path else None
        for block in network.modules():
            if isinstance(block, FastInteractionBlock) and folds(block, embed):
                _fold_self_connection(block, embed)


def _fold_self_connection(block: Any, embed: Any) -> None:
    sc = block.maps["sc"]
    sc.folded = sc.fold(block.sc, embed.embed_module.weight)


def _network(block: Any, bessel: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The radial network of a block in float64, a function of the normalised distances ``[n]``."""
    network = copy.deepcopy(block.edge_mlp).double().cpu()
    roots = bessel.bessel_weights.detach().double().cpu()

    def weights(x: torch.Tensor) -> torch.Tensor:
        return network(bessel_embedding(x.reshape(-1, 1), roots, bessel.p, bessel.factor)[0])

    return weights


# ---------------------------------------------------------------- the command


def compile_tabulated(
    model: str, output: str, tol: float, target: str, device: str, structures: Any = None
) -> dict[str, str]:
    """``nequip-compile`` a checkpoint or package with the modifier of this page; what the compiled
    model says of its table."""
    options = {"--mode": "aotinductor", "--device": device, "--target": target}
    options["--modifiers"] = "enable_FastMLIP_tabulated"
    tokens = default_tolerance.set(tol), default_structures.set(structures)
    try:
        nequip_compile([model, output, *(word for option in options.items() for word in option)])
    finally:
        default_tolerance.reset(tokens[0])
        default_structures.reset(tokens[1])
    found = metadata(Path(output))
    return {key: value for key, value in found.items() if key.startswith("fastmlip_table")}

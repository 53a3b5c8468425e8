"""Splines in the place of the radial networks of a NequIP model, refined until forces agree."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from fastmlip.integrations.host import TOLERANCE
from fastmlip.integrations.inner import Look
from fastmlip.integrations.nequip import probes
from fastmlip.integrations.nequip.edge_embedding import FastBesselEdgeLengthEncoding
from fastmlip.integrations.nequip.interaction_block import (
    FastInteractionBlock,
    folds,
    table_kinds,
)
from fastmlip.integrations.nequip.models import without_ghost_exchange
from fastmlip.integrations.nequip.private import nequip_compile, workflow_state
from fastmlip.integrations.nequip.sequential_graph_network import (
    FastSequentialGraphNetwork,
    table_parts,
    unseen_by_tables,
)
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.ops._edge_embedding_reference import radial as bessel_embedding

logger = logging.getLogger("fastmlip")
ROUNDINGS = 16  # of the largest force of a frame: below, its error is not the spline's
MARGIN = 2.0  # for structures whose bonds all have the length where the spline is worst
INTERVALS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
#: the tolerance of the modifier ``enable_FastMLIP_tabulated``, which NequIP's commands name
#: without arguments
default_tolerance: ContextVar[float] = ContextVar("default_tolerance", default=TOLERANCE)


def refuse_training() -> None:
    """For the modifier: ``nequip-train`` must not tabulate what it is to train."""
    if workflow_state() == "train":
        raise ValueError(
            "enable_FastMLIP_tabulated: tabulated models cannot be trained; name enable_FastMLIP "
            "in the config, and this modifier when the trained model is compiled"
        )


def tabulate_(
    model: Any, tol: float | None = None, structures: Iterable[Any] | None = None
) -> None:
    """Tabulate an accelerated model in place; :func:`fastmlip.tabulate` describes it."""
    tol = default_tolerance.get() if tol is None else tol
    if not tol > 0:
        raise ValueError(f"tol: expected a positive number (eV/Angstrom), got {tol}")
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
    with without_ghost_exchange(model):
        intervals, found = _refine(model, blocks, bessels[0], tol, structures)
    networks = [_network(block, bessels[0]) for block in blocks]
    errors = [b.spline.error(f) for b, f in zip(blocks, networks, strict=True)]
    metadata = {
        "intervals": str(intervals),
        "max_force_error": f"{found.error:.1e}",
        "tolerance": f"{tol:.1e}",
        "max_force": f"{found.force:.1e}",
        "probed_from": f"{found.shortest:.2f}",
        "max_weight_error": f"{max(value for value, _ in errors):.1e}",
        "max_slope_error": f"{max(slope for _, slope in errors):.1e}",
    }
    for block in blocks:
        for name in ("linear_1", "linear_2"):
            block.maps[name].folded = block.maps[name].fold(getattr(block, name))
        block.is_named_in_metadata = block is blocks[-1]
        block.table_metadata = {f"fastmlip_table_{key}": text for key, text in metadata.items()}
    _fold_self_connections(model)
    for network in rows:
        network.tabulated = [type(part).__name__ for _, part in table_parts(network)]
        network.look = Look()
    parts = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    blocks[-1].refusals = [m.register_load_state_dict_pre_hook(refuse_state) for m in parts]


def refuse_state(*args: Any) -> None:
    """Before a state dict is loaded: tables and folded weights are no part of it, and would not
    follow."""
    raise RuntimeError(
        "a tabulated model takes no state dict, its tables are made of the weights it has: load "
        "into the model that it was made of, then tabulate that"
    )


class Found(NamedTuple):
    """The largest error of a force component, with :data:`MARGIN`, the largest force, in
    eV/Angstrom, and the shortest distance over r_max, of all probes."""

    error: float
    force: float
    shortest: float


def _refine(model: Any, blocks: list[Any], bessel: Any, tol: float, structures: Any):
    """Put splines into the blocks; the number of their intervals and :class:`Found`."""
    frames = [
        *((frame, False) for frame in probes.ordinary(model, structures)),
        *((frame, True) for frame in probes.short(model)),
    ]
    exact = [_forces(model, frame) for frame, _ in frames]
    forces = [force.abs().max().item() for force in exact]
    eps = torch.finfo(next(blocks[0].linear_1.parameters()).dtype).eps
    rounding = [ROUNDINGS * eps * force for force in forces]
    # atoms nearer than in any simulation may have forces without enough digits
    allowed = [
        max(tol, least) if is_short else tol
        for (_, is_short), least in zip(frames, rounding, strict=True)
    ]
    shortest = min(probes.shortest(model, frame) for frame, _ in frames)
    best = (float("inf"), 0)
    for intervals in INTERVALS:
        for block in blocks:
            network = _network(block, bessel)
            weight = next(block.edge_mlp.parameters())
            spline = RadialSpline.fit(network, intervals, weight.dtype)
            block.spline = spline.to(weight.device)
        found = [_forces(model, frame) for frame, _ in frames]
        errors = [(f - e).abs().max().item() for f, e in zip(found, exact, strict=True)]
        errors = [
            error if error <= least else MARGIN * error
            for error, least in zip(errors, rounding, strict=True)
        ]
        logger.info("%d intervals: max |dF| %.1e eV/Angstrom", intervals, max(errors))
        best = min(best, (max(errors), intervals))
        if all(error <= bound for error, bound in zip(errors, allowed, strict=True)):
            return intervals, Found(max(errors), max(forces), shortest)
    for block in blocks:
        block.spline = None
    raise ValueError(
        f"tol: {tol:.1e} eV/Angstrom was not reached: max |dF| is {best[0]:.1e} at best, with "
        f"{best[1]} intervals, for forces up to {max(forces):.1e} "
        f"in {next(blocks[0].linear_1.parameters()).dtype}. Finer grids add rounding: give a "
        "larger tol, or structures whose forces are smaller"
    )


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


def _forces(model: Any, frame: dict[str, torch.Tensor]) -> torch.Tensor:
    pos = frame["pos"].clone().requires_grad_()
    with torch.enable_grad():
        out = model({**frame, "pos": pos})
        if "forces" not in out:  # a model of energies alone
            return -torch.autograd.grad(out["total_energy"].sum(), pos)[0]
    return out["forces"].detach()


# ---------------------------------------------------------------- the command


def compile_tabulated(
    model: str, output: str, tol: float, target: str, device: str
) -> dict[str, str]:
    """``nequip-compile`` a checkpoint or package with the modifier of this page; what the compiled
    model says of its table."""
    options = {"--mode": "aotinductor", "--device": device, "--target": target}
    options["--modifiers"] = "enable_FastMLIP_tabulated"
    token = default_tolerance.set(tol)
    try:
        nequip_compile([model, output, *(word for option in options.items() for word in option)])
    finally:
        default_tolerance.reset(token)
    metadata = torch._inductor.aoti_load_package(output).get_metadata()
    return {key: value for key, value in metadata.items() if key.startswith("fastmlip_table")}

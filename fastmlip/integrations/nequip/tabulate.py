"""Splines in the place of the radial networks of a NequIP model, refined until forces agree."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import torch

from fastmlip.integrations.host import TOLERANCE
from fastmlip.integrations.nequip.edge_embedding import FastBesselEdgeLengthEncoding
from fastmlip.integrations.nequip.interaction_block import FastInteractionBlock
from fastmlip.integrations.nequip.private import nequip_compile, workflow_state
from fastmlip.nn.radial_spline import RadialSpline
from fastmlip.ops._edge_embedding_reference import radial as bessel_embedding

logger = logging.getLogger("fastmlip")
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
    probes = list(_probes(model, structures))
    for block in blocks:
        block.spline = None
    model.requires_grad_(False).eval()
    exact = [_forces(model, probe) for probe in probes]
    best = (float("inf"), 0)
    for intervals in INTERVALS:
        for block in blocks:
            block.spline = _fit(block, bessels[0], intervals)
        found = [_forces(model, probe) for probe in probes]
        error = max((f - e).abs().max().item() for f, e in zip(found, exact, strict=True))
        logger.info("%d intervals: max |dF| %.1e eV/Angstrom", intervals, error)
        best = min(best, (error, intervals))
        if error <= tol:
            break
    else:
        for block in blocks:
            block.spline = None
        raise ValueError(
            f"tol: {tol:.1e} eV/Angstrom was not reached: max |dF| is {best[0]:.1e} at best, with "
            f"{best[1]} intervals, for forces up to {max(e.abs().max().item() for e in exact):.1e} "
            f"in {next(blocks[0].linear_1.parameters()).dtype}. Finer grids add rounding: give a "
            "larger tol, or structures whose forces are smaller"
        )
    for block in blocks:
        for name in ("linear_1", "linear_2"):
            block.maps[name].folded = block.maps[name].fold(getattr(block, name))
        if block.type_embed:
            sc, attrs = block.maps["sc"], block.type_embed[0].embed_module.weight
            sc.folded = sc.fold(block.sc, attrs)
        block.table_metadata = {
            "fastmlip_table_intervals": str(intervals),
            "fastmlip_table_max_force_error": f"{error:.1e}",
            "fastmlip_table_tolerance": f"{tol:.1e}",
        }


def _fit(block: Any, bessel: Any, intervals: int) -> RadialSpline:
    network = copy.deepcopy(block.edge_mlp).double().cpu()
    roots = bessel.bessel_weights.detach().double().cpu()
    weight = next(block.edge_mlp.parameters())

    def weights(x: torch.Tensor) -> torch.Tensor:
        return network(bessel_embedding(x.reshape(-1, 1), roots, bessel.p, bessel.factor)[0])

    return RadialSpline.fit(weights, intervals, weight.dtype).to(weight.device)


def _forces(model: Any, probe: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(dict(probe))["forces"].detach()


# ---------------------------------------------------------------- structures to compare forces on


def _probes(model: Any, structures: Iterable[Any] | None) -> Iterable[dict[str, torch.Tensor]]:
    from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase, from_dict

    metadata = model.metadata
    r_max, type_names = float(metadata["r_max"]), metadata["type_names"].split(" ")
    device = next(model.parameters()).device
    if structures is None:
        frames = [from_dict(frame) for frame in _disordered(r_max, len(type_names))]
    else:
        frames = []
        for atoms in structures:
            data = from_ase(atoms)
            types = _types(atoms.get_chemical_symbols(), type_names)
            data[AtomicDataDict.ATOM_TYPE_KEY] = torch.tensor(types)
            frames.append(data)
        if not frames:
            raise ValueError("structures: expected at least one ase.Atoms, got none")
    for data in frames:
        data = compute_neighborlist_(data, r_max=r_max)
        yield AtomicDataDict.to_(data, device)


def _types(symbols: Sequence[str], type_names: Sequence[str]) -> list[int]:
    unknown = sorted(set(symbols) - set(type_names))
    if unknown:
        raise ValueError(f"structures: {unknown} are not among the model's types {type_names}")
    return [type_names.index(symbol) for symbol in symbols]


def _disordered(r_max: float, num_types: int) -> Iterable[dict[str, Any]]:
    """Simple cubic cells at three densities, more and more disordered, with all types, whose
    distances fill the range from r_max / 4 on."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.cartesian_prod(*[torch.arange(3, dtype=torch.float64)] * 3)
    for spacing, disorder in ((0.6, 0.05), (0.5, 0.1), (0.42, 0.15)):
        noise = disorder * torch.randn(corner.shape, generator=generator, dtype=torch.float64)
        yield {
            "pos": (corner + noise) * spacing * r_max,
            "cell": torch.eye(3, dtype=torch.float64) * 3 * spacing * r_max,
            "pbc": torch.ones(3, dtype=torch.bool),
            "atom_types": torch.randint(0, num_types, (len(corner),), generator=generator),
        }


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

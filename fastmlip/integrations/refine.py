"""Tables in the place of networks, refined until forces agree: what models of all hosts have in
common."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from fastmlip.integrations import probes
from fastmlip.integrations.host import HostModel

logger = logging.getLogger("fastmlip")
ROUNDINGS = 16  # of the largest force of a frame: below, its error is not the spline's
# eV/Angstrom: between atoms nearer than in any simulation, forces may be of any size, and need no
# more digits than those of this size
LARGE = 1e3
MARGIN = 2.0  # for structures whose bonds all have the length where the spline is worst
INTERVALS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class Found(NamedTuple):
    """What was reached: intervals of the grid, the largest error of a force component, with
    :data:`MARGIN`, the largest force, in eV/Angstrom, and the shortest distance over r_max, of all
    probes."""

    intervals: int
    error: float
    force: float
    shortest: float

    def metadata(self, tol: float, errors: Sequence[tuple[float, float]]) -> dict[str, str]:
        """For a compiled model's file and the summary; ``errors`` are those of values and slopes of
        all splines."""
        found = {
            "intervals": str(self.intervals),
            "max_force_error": f"{self.error:.1e}",
            "tolerance": f"{tol:.1e}",
            "max_force": f"{self.force:.1e}",
            "probed_from": f"{self.shortest:.2f}",
            "max_weight_error": f"{max(value for value, _ in errors):.1e}",
            "max_slope_error": f"{max(slope for _, slope in errors):.1e}",
        }
        return {f"fastmlip_table_{key}": text for key, text in found.items()}


def remark(metadata: dict[str, str]) -> str:
    """The same for the summary."""
    about = {key.removeprefix("fastmlip_table_"): text for key, text in metadata.items()}
    return (
        f"tabulated: {about['intervals']} intervals, max |dF| {about['max_force_error']} "
        f"eV/Angstrom of {about['max_force']}, distances from {about['probed_from']} r_max on"
    )


def positive(tol: float) -> float:
    """``tol``, checked."""
    if not tol > 0:
        raise ValueError(f"tol: expected a positive number (eV/Angstrom), got {tol}")
    return tol


def refine(
    host: HostModel,
    fit: Callable[[int], None],
    tol: float,
    structures: Iterable[Any] | None,
    types: Sequence[int] | None = None,
    roundings: float = ROUNDINGS,
    large: float = math.inf,
    usual: float = math.inf,
) -> Found:
    """Call ``fit``, which puts tables of so many intervals into the model of ``host``, with more
    and more of them, until forces of all probes agree with those of the model as it is at first.

    Args:
        host: of an accelerated model without tables.
        fit: of a number of intervals.
        tol: largest error of a force component, eV/Angstrom.
        structures: ``ase.Atoms``, or None for disordered cells.
        types: numbers of the types that probes have; all where it is None.
        roundings: of the largest force of a frame, which an error is not the table's below.
        large: eV/Angstrom; where the largest force between short bonds is larger, ``tol`` grows
            with it.
        usual: eV/Angstrom; where the largest force of a disordered cell is larger, as between
            elements that have no business together, an error of rounding is allowed. Frames with
            larger forces than ``usual`` or ``large`` are left out of what is reported.

    Raises:
        ValueError: ``tol`` was not reached, with what was reached.
    """
    frames = [
        *((frame, False) for frame in probes.ordinary(host, structures, types)),
        *((frame, True) for frame in probes.short(host, types)),
    ]
    exact = [_forces(host, frame) for frame, _ in frames]
    forces = [force.abs().max().item() for force in exact]
    rounding = [roundings * torch.finfo(host.dtype).eps * force for force in forces]
    # atoms nearer than in any simulation may have forces without enough digits
    allowed = [
        max(tol, tol * force / large, least)
        if is_short
        else max(tol, least if force > usual else 0.0)
        for (_, is_short), force, least in zip(frames, forces, rounding, strict=True)
    ]
    told = [n for n, force in enumerate(forces) if force <= min(large, usual)]
    told = told or list(range(len(frames)))
    shortest = min(probes.shortest(host, frame) for frame, _ in frames)
    best = (float("inf"), 0)
    for intervals in INTERVALS:
        fit(intervals)
        found = [_forces(host, frame) for frame, _ in frames]
        errors = [(f - e).abs().max().item() for f, e in zip(found, exact, strict=True)]
        errors = [
            error if error <= least else MARGIN * error
            for error, least in zip(errors, rounding, strict=True)
        ]
        logger.info("%d intervals: max |dF| %.1e eV/Angstrom", intervals, max(errors))
        best = min(best, (max(errors), intervals))
        if all(error <= bound for error, bound in zip(errors, allowed, strict=True)):
            worst = max(errors[n] for n in told), max(forces[n] for n in told)
            return Found(intervals, *worst, shortest)
    raise ValueError(
        f"tol: {tol:.1e} eV/Angstrom was not reached: max |dF| is {best[0]:.1e} at best, with "
        f"{best[1]} intervals, for forces up to {max(forces):.1e} "
        f"in {host.dtype}. Finer grids add rounding: give a "
        "larger tol, or structures whose forces are smaller"
    )


def _forces(host: HostModel, frame: dict[str, torch.Tensor]) -> torch.Tensor:
    pos = frame["pos"].clone().requires_grad_()
    with torch.enable_grad():
        out = host.run({**frame, "pos": pos})
        if "forces" not in out:  # a model of energies alone
            return -torch.autograd.grad(out["total_energy"].sum(), pos)[0]
    return out["forces"].detach()


def check_call(module: torch.nn.Module, x: torch.Tensor) -> None:
    """What a tabulated ``module`` whose input is ``x`` must not do.

    Raises:
        RuntimeError: it could be trained, or runs under autocast.
    """
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise RuntimeError(
            "a tabulated model cannot be trained, its splines would not follow: train the "
            "model that it was made of, or call model.requires_grad_(False)"
        )
    # which leaves float64 alone
    if x.dtype is not torch.float64 and torch.is_autocast_enabled(x.device.type):
        raise RuntimeError(
            f"a tabulated {x.dtype} model does not run under torch.autocast: layers after the "
            "splines would compute in half precision"
        )


def refuse_states(model: torch.nn.Module) -> list[Any]:
    """From now on, no module of ``model`` takes a state dict: tables and folded weights are no part
    of it, and would not follow. Handles of the hooks."""
    parts = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    return [m.register_load_state_dict_pre_hook(_refuse) for m in parts]


def _refuse(*args: Any) -> None:
    raise RuntimeError(
        "a tabulated model takes no state dict, its tables are made of the weights it has: load "
        "into the model that it was made of, then tabulate that"
    )

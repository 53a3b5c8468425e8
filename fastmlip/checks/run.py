"""``fastmlip.check``: a model stock and fused, on structures, through the table of checks."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastmlip import backend
from fastmlip.checks import table
from fastmlip.checks.context import Context
from fastmlip.checks.model import Side, operators_run
from fastmlip.checks.report import FAILED, PASSED, SKIPPED, Report, Result
from fastmlip.checks.table import CHECKS, Check
from fastmlip.integrations import hosts, swap
from fastmlip.integrations import structures as frames_of
from fastmlip.integrations.gpu import NOT_TIMED, is_on_gpu
from fastmlip.integrations.host import SWAPPED, HostModel
from fastmlip.integrations.structures import EDGES, POS, Frame

Progress = Callable[[str, int, int], None]


def check(
    model: torch.nn.Module | str | Path,
    structures: Any = None,
    *,
    against: torch.nn.Module | str | Path | None = None,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    frames: int = frames_of.GIVEN_FRAMES,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Show that the accelerated form of a model computes what the model does.

    Args:
        model: a NequIP or Allegro model in memory, which stays as it is (a copy is accelerated);
            or the path of a config, checkpoint, package or compiled model.
        structures: an ``ase.Atoms`` or several, or a file that ASE reads, whose chemical symbols
            are the model's type names; each is used as it is and with its atoms displaced by 0.05
            Angstrom. Default: a few that are made up for the model's types and cutoff.
        against: a model to compare with, in place of the stock form of ``model``.
        dtype: ``float32`` or ``float64`` for the network of a config or checkpoint, in place of
            its own. float64 leaves a wrong kernel nowhere to hide.
        device: default: that of a model in memory, else the CPU.
        seed: of all random numbers.
        frames: how many structures of a file are used.
        only: names of the checks to do; default: all. One that is named and cannot be done makes
            the report fail.
        progress: called with the name of a check, its number and how many there are.

    Returns:
        A :class:`~fastmlip.checks.Report`; ``report.passed`` says whether all is well.

    Raises:
        ValueError: nothing in the model can be accelerated, or it cannot be read, or a structure
            holds a species that the model has no type for.
    """
    wanted = table.names(only)
    host = _host(model, dtype, device)
    where = torch.device(device) if device is not None else _device(host)
    training = not host.compiled and host.model.training
    if not host.compiled:
        host.model.eval()
    try:
        return _checked(host, structures, against, where, seed, frames, wanted, progress)
    finally:
        if not host.compiled:
            host.model.train(training)


def _checked(
    host: Any, structures: Any, against: Any, where: torch.device, seed: int, frames: int,
    wanted: Sequence[str], progress: Progress | None,
) -> Report:  # fmt: skip
    fused, stock, modules, origin = _sides(host, against, where)
    given = _frames(structures, host, frames, seed)
    context = Context(fused, stock, [_moved(frame, where) for frame in given], seed)
    training = context.has_forces and not host.compiled
    operators, problem = _attempt(operators_run, {}, fused, context.frames[0].data, training)
    report = Report(
        model=host.origin,
        kind=host.kind,
        dtype=str(context.dtype).removeprefix("torch."),
        device=str(where),
        seed=seed,
        against=origin,
        backend=_backend(operators, where, host.compiled),
        operators=operators,
        modules=modules,
        structures=[
            {"name": f.name, "atoms": len(f.data[POS]), "edges": f.data[EDGES].shape[1]}
            for f in given
        ],
        versions=backend.info(),
        notes=list(host.notes),
    )
    report.results.append(_operators_row(report, problem))
    rows = [row for row in CHECKS if row.name in wanted]
    every = len(rows) == len(CHECKS)
    report.asked = [] if every else [name for name in wanted if name != table.OPERATORS]
    for number, row in enumerate(rows):
        if progress is not None:
            progress(row.name, number, len(rows))
        report.results.append(_result(row, context))
    if progress is not None:
        progress("done", len(rows), len(rows))
    return report


def _attempt(function: Callable[..., Any], otherwise: Any, *arguments: Any) -> tuple[Any, str]:
    """What a function returns, or ``otherwise`` and the error: a kernel may raise anything."""
    try:
        return function(*arguments), ""
    except Exception as problem:
        return otherwise, f"{type(problem).__name__}: {problem}"


def _host(model: Any, dtype: str | None, device: Any) -> HostModel:
    if isinstance(model, (str, Path)):
        return hosts.load(model, dtype, str(device or "cpu"))
    if dtype is not None:
        raise ValueError("dtype: a model in memory has its own")
    return hosts.describe(model)


def _device(host: Any) -> torch.device:
    if not host.compiled:
        for tensor in host.model.state_dict().values():
            return tensor.device
    return torch.device("cpu")


def _sides(host: Any, against: Any, device: torch.device) -> tuple[Side, Side | None, list, str]:
    """The model to check, what it is compared with, its modules, and what that is called."""
    modules: list[swap.Row] = []
    stock, origin = None, "nothing: a compiled model has no stock form"
    if not host.compiled:
        before = {row.path for row in swap.report(host.model) if row.status == SWAPPED}
        if before:
            host.notes.append(
                f"{len(before)} modules were of fastmlip already: they are compared with the "
                "plain-PyTorch reference of their operators"
            )
        if getattr(host.model, "is_compile_graph_model", False):
            host.notes.append("a model with compile_mode: compile, checked in its eager form")
        stock_host = copy.copy(host)
        if device != _device(host):
            stock_host.model = copy.deepcopy(host.model).to(device)
        stock, origin = Side(stock_host, True, device), "its stock form"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report has a row for what was left as it was
            host = copy.copy(host)
            host.model = swap.accelerate(copy.deepcopy(stock_host.model), self_check=False)
        modules = swap.report(host.model)
        if is_on_gpu(host.model):
            host.notes.append(NOT_TIMED)
    if against is not None:
        other = _host(against, None, device)
        if other.type_names != host.type_names or other.r_max != host.r_max:
            raise ValueError(
                f"against: {other.origin} has the types {other.type_names} and the cutoff "
                f"{other.r_max}, not {host.type_names} and {host.r_max}"
            )
        if not other.compiled:
            other.model = copy.deepcopy(other.model).to(device).eval()
        stock, origin = Side(other, True, device), other.origin
    return Side(host, False, device), stock, modules, origin


def _frames(structures: Any, host: Any, frames: int, seed: int) -> list[Frame]:
    if structures is None:
        return frames_of.generated(host, seed)
    if isinstance(structures, (str, Path)):
        return frames_of.from_file(structures, host, frames, seed)
    several: Sequence[Any] = (
        [structures] if hasattr(structures, "get_positions") else list(structures)
    )
    return frames_of.from_atoms(several, host, seed)


def _moved(frame: Frame, device: torch.device) -> Frame:
    given = None if frame.given is None else {k: v.to(device) for k, v in frame.given.items()}
    return Frame(frame.name, {k: v.to(device) for k, v in frame.data.items()}, given)


def _result(row: Check, context: Context) -> Result:
    tolerance = row.tolerance(context)
    reason = row.missing(context)
    error, where, stock, status = None, "", None, SKIPPED
    if not reason:
        broken = [("", float("inf"))]
        found, reason = _attempt(lambda: list(row.measure(context, context.fused)), broken)
        if not found:
            reason = "no structure has what it needs"
        else:
            where, error = _largest(found)
            allowed = tolerance
            other = context.stock
            if error > tolerance > 0 and not reason and other is not None:
                errors = _attempt(lambda: list(row.measure(context, other)), [])[0]
                stock = _largest(errors or broken)[1]
                allowed = max(tolerance, min(2 * stock, 10 * tolerance))
            status = PASSED if error <= allowed else FAILED
    return Result(row.name, row.what, error, where, tolerance, stock, status, reason)


def _largest(errors: Iterable[tuple[str, float]]) -> tuple[str, float]:
    """The pair with the largest error; one that is not a number is larger than any."""
    known = [(where, math.inf if math.isnan(error) else error) for where, error in errors]
    return max(known, key=lambda pair: pair[1])


def _backend(operators: dict[str, int], device: torch.device, compiled: bool) -> str:
    if operators:
        return "cpp" if any(name.endswith("_cpu") for name in operators) else "triton"
    if compiled:
        return "none seen"
    return backend.choose(torch.empty(0, device=device))


def _operators_row(report: Report, problem: str = "") -> Result:
    """Without it, a swap that does nothing would pass for a right one."""
    expected = [row for row in report.modules if row.status == SWAPPED]
    status, note = PASSED, ""
    if problem:
        status, note = FAILED, problem
    elif report.kind == "compiled":
        if not report.operators:
            status, note = SKIPPED, "no operator of fastmlip was called by name"
    elif report.backend == "reference":
        note = "plain PyTorch ran, no kernel"
    elif expected and not report.operators:
        status, note = FAILED, "modules were swapped, but no operator of fastmlip ran"
    return Result(
        table.OPERATORS, "fastmlip's operators are what runs", None, "", 0.0, None, status, note
    )

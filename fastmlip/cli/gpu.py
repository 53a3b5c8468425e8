"""``fastmlip gpu-report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastmlip.cli.common import app, failed, must_be_writable, say


@app.command()
def gpu_report(
    out: Annotated[
        Path | None, typer.Option(help="Write the rows to FILE.json or FILE.csv.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="sm_90, gfx942, ...; repeat for more. Default: all.")
    ] = None,
    operator: Annotated[
        list[str] | None, typer.Option(help="tensor_product_conv, ...; repeat. Default: all.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="All presets and code paths, not only NequIP M (slow).")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="NequIP-S, NequIP-M, NequIP-L, NequIP-XL, or a config, checkpoint "
                     "or package: report the whole model."),
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="With --model: H100, ...; repeat. Default: all.")
    ] = None,
    atoms: Annotated[
        list[int] | None,
        typer.Option(help="With --model: 4 n^3 atoms; repeat. Default: 108 and 10976."),
    ] = None,
) -> None:  # fmt: skip
    """Compile every GPU kernel and show registers, spills, instructions and a modelled time.

    With --model: all launches of the model's energy and forces and of a training step, with their
    modelled times, for stock and for what fastmlip makes of it. A model file is a program that runs
    when it is loaded.

    Needs Triton and no GPU. Nothing is measured. Exit status 1 where a kernel does not compile,
    spills registers or has atomics.
    """
    if model is not None:
        if target or operator or sweep:
            raise typer.BadParameter("goes with none of --target, --operator, --sweep",
                                     param_hint="--model")  # fmt: skip
        return _model_report(model, out, gpu, atoms)
    if gpu or atoms:
        raise typer.BadParameter("goes with --model only", param_hint="--gpu, --atoms")
    from fastmlip.gpu import passes, report
    from fastmlip.gpu.targets import TARGETS

    screen = Console(stderr=True)
    chosen = _known(target, list(TARGETS), "--target")
    cases = passes.SWEEP if sweep else passes.SHOWN
    names = _known(operator, list(cases), "--operator")
    try:
        if out is not None:
            report.check_out(out)
        report.check_compiler()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from None
    except report.CannotCompile as error:
        raise failed(screen, str(error)) from None
    todo = [p for name in names for case in cases[name] for p in passes.passes(name, case)]
    compiling = report.rows(todo, [TARGETS[name] for name in chosen])
    total = len(todo) * len(chosen)
    found = list(track(compiling, "compiling", total, console=screen, transient=True))
    for table in report.tables(found):
        Console().print(table)
    Console().print(report.NOTE)
    if out is not None:
        report.write(found, out)
    for row in found:
        if row.fails:
            say(screen, f"{row.operator} {row.case} {row.order} on {row.target}: {row.why}")
    raise typer.Exit(any(row.fails for row in found))


@app.command()
def gpu_check(
    out: Annotated[
        Path, typer.Option(help="Folder for index.html, results.json and the log of each step.")
    ] = Path("gpu_report"),
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the steps.")] = "cuda",
    step: Annotated[
        list[str] | None, typer.Option(help="machine, parity-S, ...; repeat. Default: all.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Tiny systems, for a try on a CPU.")
    ] = False,
) -> None:
    """Test and time fastmlip on this machine's GPU, within eight minutes, and write one report.

    Tests of the operators, whole NequIP models against stock on the CPU, and times of operators and
    models against what else is installed. Each step has a limit of its own. The exit status is 1
    where a step failed or checked nothing.
    """
    import torch

    screen = Console(stderr=True)
    if device not in ("cuda", "cpu"):
        raise typer.BadParameter(f"expected cuda or cpu, got {device!r}", param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        why = f"torch {torch.__version__} sees no GPU here"
        raise typer.BadParameter(why, param_hint="--device")
    try:
        from fastmlip.bench import gpu_check as check
        from fastmlip.bench import report, results, summary
    except ImportError as error:
        raise failed(screen, f"the benchmarks cannot be loaded: {error}") from None
    names = _known(step, list(check.LIMITS), "--step")
    must_be_writable(out / "index.html" if out.is_dir() else out, "--out")

    def show(outcome: check.Outcome) -> None:
        say(screen, f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.text}")

    found, outcomes = check.run(device, out, small, names=names, say=show)
    page = report.write(found, out)
    if warning := results.busy(found):
        say(screen, warning)
    for line in summary.text(found):
        typer.echo(line)
    table = Table("step", "", "seconds", "found", title="fastmlip on " + _device_name(found))
    for outcome in outcomes:
        style = "bold red" if outcome.failed else None
        table.add_row(
            outcome.name, outcome.status, f"{outcome.seconds:.0f}", outcome.text, style=style
        )
    Console().print(table)
    say(Console(), f"{page}")
    raise typer.Exit(any(outcome.failed for outcome in outcomes))


def _device_name(report: Any) -> str:
    machine = report.environment["machine"]
    return str(machine["processor" if report.environment["device"] == "cpu" else "gpu"])


def _model_report(
    model: str, out: Path | None, gpu: list[str] | None, atoms: list[int] | None
) -> None:
    from fastmlip.gpu import model_report, report
    from fastmlip.gpu.gpus import GPUS

    screen = Console(stderr=True)
    chosen = [GPUS[name] for name in _known(gpu, list(GPUS), "--gpu")]
    cells = [_cells(number) for number in atoms or (108, 10976)]
    if out is not None:
        if out.suffix != ".json":
            raise typer.BadParameter(f"expected a .json file, got {out.name!r}", param_hint="--out")
        must_be_writable(out, "--out")
    try:
        report.check_compiler()
        with screen.status("building the models") as status:
            found = model_report.report(model, cells, chosen, progress=status.update)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(str(error), param_hint="--model") from None
    except RuntimeError as error:  # of the compiler, or a CPU's operator in a GPU's list
        raise failed(screen, str(error)) from None
    for table in model_report.tables(found):
        Console().print(table)
    say(Console(), model_report.NOTE)
    if out is not None:
        model_report.write(found, out)
    errors = dict.fromkeys(f"{t.form} on {t.gpu}: {t.error}" for t in found if t.error)
    for line in errors:
        say(screen, f"does not compile: {line}")
    raise typer.Exit(bool(errors))


def _cells(atoms: int) -> int:
    cells = round((atoms / 4) ** (1 / 3))
    if cells < 1 or 4 * cells**3 != atoms:
        raise typer.BadParameter(
            f"expected 4 n^3 atoms (32, 108, 256, ..., 1372, 10976), got {atoms}",
            param_hint="--atoms",
        )
    return cells


def _known(given: list[str] | None, known: list[str], option: str) -> list[str]:
    for name in given or ():
        if name not in known:
            raise typer.BadParameter(
                f"expected one of {', '.join(known)}, got {name!r}", param_hint=option
            )
    return given or known

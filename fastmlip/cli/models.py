"""``fastmlip tabulate`` and ``fastmlip check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import fastmlip
from fastmlip.cli.common import (
    app,
    failed,
    frames_of,
    must_be_tolerance,
    must_be_writable,
    must_exist,
    say,
    show,
)


@app.command()
def tabulate(
    model: Annotated[
        Path, typer.Argument(help="NequIP or Allegro checkpoint (.ckpt) or package (.nequip.zip).")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Compiled model to write (.nequip.pt2).")
    ],
    tol: Annotated[
        float, typer.Option(help="Largest error of a force component, in eV/Angstrom.")
    ] = 1e-5,
    structures: Annotated[
        Path | None,
        typer.Option(
            help="A file that ASE reads, to compare forces on. An Allegro model has tables for the "
            "types in it alone."
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="Of nequip-compile: ase, pair_nequip, ...")] = "ase",
    device: Annotated[str, typer.Option(help="Device the compiled model runs on.")] = "cpu",
) -> None:
    """Compile a trained NequIP or Allegro model with tables of the distance, for MD.

    MODEL is a program that runs when it is loaded: take only files of people you trust.
    It is nequip-compile with the modifier enable_FastMLIP_tabulated, and takes minutes. The table
    is refined until forces agree; the error that was reached is printed and kept in the file.
    """
    screen = Console(stderr=True)
    must_exist(model, "MODEL")
    if not model.name.endswith((".ckpt", ".nequip.zip")):
        raise typer.BadParameter(
            f"expected a checkpoint (.ckpt) or a package (.nequip.zip), got {model.name}",
            param_hint="MODEL",
        )
    if not str(output).endswith(".nequip.pt2"):
        raise typer.BadParameter(f"{output} must end in .nequip.pt2", param_hint="--output")
    must_be_writable(output, "--output")
    must_be_tolerance(tol, structures)
    try:
        from fastmlip.integrations.gpu import NOT_TIMED
        from fastmlip.integrations.nequip.tabulate import compile_tabulated

        if device.startswith("cuda"):
            say(screen, f"warning: {NOT_TIMED}")
        with screen.status("tabulating, then compiling with AOTInductor"):
            frames = frames_of(structures)
            found = compile_tabulated(str(model), str(output), tol, target, device, frames)
    except Exception as error:  # whatever NequIP and AOTInductor may raise
        raise failed(screen, f"{type(error).__name__}: {error}") from None
    show(found, str(output), "fastmlip_table_")


@app.command()
def check(
    model: Annotated[
        Path,
        typer.Argument(
            help="NequIP or Allegro config (.yaml), checkpoint (.ckpt), package (.nequip.zip) or "
            "compiled model (.nequip.pt2), or SevenNet checkpoint (.pth)."
        ),
    ],
    structures: Annotated[
        Path | None,
        typer.Argument(help="A file that ASE reads; a few are made up where it is left out."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="A model to compare with, for instance a compiled one's.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or float64, of a config or checkpoint.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where both models run.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    frames: Annotated[int, typer.Option(min=1, help="Frames used of STRUCTURES.")] = 3,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a check to do; can be given several times.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
) -> None:
    """Compare a model with its accelerated form; the exit status is 1 where a check fails.

    A model file is a program that runs when it is loaded: check only files of people you trust.

    Energies, forces, stress, parameter gradients and the Hessian against stock, against finite
    differences, under rotations and the like, and run after run. Nothing is trained.
    """
    from rich.progress import Progress, SpinnerColumn

    from fastmlip.checks.table import names

    screen = Console(stderr=True)
    for path, name in ((model, "MODEL"), (structures, "STRUCTURES"), (against, "--against")):
        if path is not None:
            must_exist(path, name)
    if json is not None:
        must_be_writable(json, "--json")
    try:
        names(only)
    except ValueError as error:
        raise typer.BadParameter(str(error).removeprefix("only: "), param_hint="--only") from None
    if dtype not in (None, "float32", "float64"):
        raise typer.BadParameter(f"expected float32 or float64, got {dtype}", param_hint="--dtype")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise typer.BadParameter(str(error).partition("\n")[0], param_hint="--device") from None
    try:
        with Progress(SpinnerColumn(), *Progress.get_default_columns(), console=screen) as bar:
            task = bar.add_task("building the models", total=None)
            report = fastmlip.check(
                model, structures, against=against, dtype=dtype, device=device, seed=seed,
                frames=frames, only=only,
                progress=lambda name, done, total: bar.update(
                    task, description=name, completed=done, total=total
                ),
            )  # fmt: skip
    except Exception as error:  # whatever a reader of files may raise
        raise failed(screen, f"{type(error).__name__}: {error}", 2) from None
    console = Console()
    for table in report.tables(console.width):
        console.print(table)
    for remark in report.remarks():
        say(console, remark)
    if json is not None:
        json.write_text(report.to_json())
    for verdict, results in (("failed", report.failed), ("could not be done", report.undone)):
        if results:
            say(console, f"{verdict}: {', '.join(result.name for result in results)}")
    done = sum(result.status == "passed" for result in report.results)
    if report.passed:
        say(console, "all checks passed" if not report.asked else f"{done} checks passed")
    raise typer.Exit(0 if report.passed else 1)

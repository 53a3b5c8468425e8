"""The command ``fastmlip``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fastmlip

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Fused kernels for E(3)-equivariant interatomic potentials."""


@app.command()
def info() -> None:
    """Print what runs where on this machine, and why."""
    table = Table(show_header=False, title="fastmlip")
    for question, answer in fastmlip.info().items():
        table.add_row(question, answer)
    Console().print(table)


@app.command()
def stats(
    source: Annotated[
        Path, typer.Argument(help="NequIP config (.yaml), or a file that ASE reads (.extxyz, ...).")
    ],
    r_max: Annotated[
        float | None, typer.Option(help="Cutoff; for a data file, where it must be given.")
    ] = None,
    type_names: Annotated[
        str | None,
        typer.Option(help="Types with commas between, in the model's order, e.g. H,C,O."),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="Of a config: train, val, test or predict.")
    ] = "train",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Frames read at a time.")] = None,
    ignore_nan: Annotated[
        bool, typer.Option("--ignore-nan", help="Skip and count NaN energies and forces.")
    ] = False,
    energy_key: Annotated[str, typer.Option(help="Of a data file: name of energies.")] = "energy",
    forces_key: Annotated[str, typer.Option(help="Of a data file: name of forces.")] = "forces",
) -> None:
    """Statistics of a data set, as a table and as YAML to paste into a config.

    The YAML goes to standard output; tables, progress bar and messages to standard error.
    """
    from fastmlip.data.report import tables, to_yaml

    is_config = source.suffix in (".yaml", ".yml")
    if not source.is_file():
        raise typer.BadParameter(f"there is no file {source}", param_hint="SOURCE")
    if is_config and r_max is not None:
        raise typer.BadParameter("a config has its own cutoff", param_hint="--r-max")
    if not is_config and r_max is None:
        raise typer.BadParameter("a data file needs a cutoff, in Angstrom", param_hint="--r-max")
    if not is_config and dataset != "train":
        raise typer.BadParameter("only configs have data sets", param_hint="--dataset")
    screen = Console(stderr=True)
    names = [name.strip() for name in type_names.split(",")] if type_names else None
    try:
        from fastmlip.integrations.nequip import datasets
    except ImportError as error:
        raise _failed(screen, f"data are read with NequIP, which is not there: {error}") from None
    try:
        if is_config:
            found = datasets.statistics_of_config(
                source, names, dataset, batch_size=batch_size, ignore_nan=ignore_nan, progress=True
            )
        else:
            assert r_max is not None
            found = datasets.statistics_of_file(
                source, r_max, names, batch_size, energy_key, forces_key,
                ignore_nan=ignore_nan, progress=True,
            )  # fmt: skip
    except Exception as error:  # whatever a reader of files may raise
        raise _failed(screen, f"{type(error).__name__}: {error}") from None
    for table in tables(found, title=str(source)):
        screen.print(table)
    for name, reason in found.unavailable.items():
        _say(screen, f"{name} left out: {reason}")
    for name, note in found.notes.items():
        _say(screen, f"{name}: {note}")
    origin = f"{source}, {dataset}" if is_config else f"{source}, r_max {r_max}"
    typer.echo(to_yaml(found, origin), nl=False)


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
) -> None:
    """Compile every GPU kernel and show registers, spills, instructions and a modelled time.

    Needs Triton and no GPU. Nothing is measured. Exit status 1 where a kernel spills registers or
    has atomics.
    """
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
        raise _failed(screen, str(error)) from None
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
            _say(
                screen,
                f"{row.operator} {row.case} {row.order} on {row.target}: {row.spilled} bytes "
                f"spilled, {row.atomics} atomics",
            )
    raise typer.Exit(any(row.fails for row in found))


def _known(given: list[str] | None, known: list[str], option: str) -> list[str]:
    for name in given or ():
        if name not in known:
            raise typer.BadParameter(
                f"expected one of {', '.join(known)}, got {name!r}", param_hint=option
            )
    return given or known


def _say(screen: Console, text: str) -> None:
    screen.print(text, markup=False, highlight=False, soft_wrap=True)


def _failed(screen: Console, message: str) -> typer.Exit:
    screen.print("error", style="bold red", end=": ")
    _say(screen, message)
    return typer.Exit(1)

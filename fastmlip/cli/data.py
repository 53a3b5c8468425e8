"""``fastmlip stats``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastmlip.cli.common import app, failed, say


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
    energy_key: Annotated[
        str | None, typer.Option(help="Of a data file: name of energies [default: energy].")
    ] = None,
    forces_key: Annotated[
        str | None, typer.Option(help="Of a data file: name of forces [default: forces].")
    ] = None,
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
        raise failed(screen, f"data are read with NequIP, which is not there: {error}", 2) from None
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
        raise failed(screen, f"{type(error).__name__}: {error}", 2) from None
    for table in tables(found, title=str(source)):
        screen.print(table)
    reasons: dict[str, list[str]] = {}
    for name, reason in found.unavailable.items():
        reasons.setdefault(reason, []).append(name)
    for reason, left_out in reasons.items():
        say(screen, f"{', '.join(left_out)} left out: {reason}")
    for name, note in found.notes.items():
        say(screen, f"{name}: {note}")
    origin = f"{source}, {dataset}" if is_config else f"{source}, r_max {r_max}"
    typer.echo(to_yaml(found, origin), nl=False)

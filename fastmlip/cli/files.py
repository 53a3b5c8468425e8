"""``fastmlip info`` and ``fastmlip strip``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import fastmlip
from fastmlip.cli.common import app, must_be_writable, must_exist, say


@app.command()
def info(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A model file to read about.")
    ] = None,
) -> None:
    """Print what runs where on this machine, and why; or the metadata of a model FILE.

    Nothing that is in FILE is executed.
    """
    if file is None:
        answers = fastmlip.info()
    else:
        must_exist(file, "FILE")
        from fastmlip.integrations.nequip import files

        try:
            answers = files.metadata(file)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="FILE") from None
    table = Table(show_header=False, title="fastmlip" if file is None else file.name)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for question, answer in answers.items():
        table.add_row(question, escape(answer))
    Console().print(table)


@app.command()
def strip(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint of nequip-train (.ckpt).")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Checkpoint to write.")
    ],
) -> None:
    """Write a checkpoint with the same weights that needs no fastmlip.

    NequIP keeps the config of a run in its checkpoints. The new file's config has no modifier of
    fastmlip, so that it loads, and resumes, where fastmlip is not installed.
    """
    from fastmlip.integrations.nequip import files

    must_exist(checkpoint, "CHECKPOINT")
    if output.exists():
        raise typer.BadParameter(f"{output} exists already", param_hint="--output")
    must_be_writable(output, "--output")
    try:
        removed = files.strip(checkpoint, output)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="CHECKPOINT") from None
    say(Console(), f"{output}: without {', '.join(removed)}; the weights are the same")

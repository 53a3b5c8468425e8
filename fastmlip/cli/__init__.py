"""The command ``fastmlip``; a file here for each kind of command."""

from __future__ import annotations

from typing import Annotated

import typer

import fastmlip
from fastmlip.cli import bench, data, files, gpu, lammps, models
from fastmlip.cli.common import app

__all__ = ["app", "bench", "data", "files", "gpu", "lammps", "models"]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastmlip {fastmlip.__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fused kernels for E(3)-equivariant interatomic potentials.

    The exit status is 0 where all is well, 1 where something that was done failed, and 2 where an
    argument or a file is wrong.
    """

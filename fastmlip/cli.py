"""The command ``fastmlip``."""

from __future__ import annotations

import typer
from rich.console import Console
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

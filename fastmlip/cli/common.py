"""The app, and what its commands share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(no_args_is_help=True, add_completion=False, context_settings=HELP)


def must_exist(path: Path, name: str) -> None:
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder, expected a file", param_hint=name)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}", param_hint=name)


def must_be_writable(path: Path, name: str) -> None:
    """Before work begins whose result would be lost."""
    folder = path.absolute().parent
    if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise typer.BadParameter(f"cannot write {path}", param_hint=name)


def must_be_tolerance(tol: float, structures: Path | None) -> None:
    """Of a table, and the file of structures that it is made for."""
    if not tol > 0:
        raise typer.BadParameter(f"expected a positive number, got {tol}", param_hint="--tol")
    if structures is not None:
        must_exist(structures, "--structures")


def frames_of(structures: Path | None) -> list[Any] | None:
    """All frames of a file that ASE reads."""
    import ase.io

    return None if structures is None else list(ase.io.read(structures, ":"))


def show(about: Mapping[str, str], title: str, prefix: str) -> None:
    """What a file says of itself, names without ``prefix``."""
    table = Table(show_header=False, title=title)
    for key, value in about.items():
        table.add_row(key.removeprefix(prefix).replace("_", " "), value)
    Console().print(table)


def say(screen: Console, text: str) -> None:
    screen.print(text, markup=False, highlight=False, soft_wrap=True)


def failed(screen: Console, message: str, status: int = 1) -> typer.Exit:
    """For ``raise``: 1 for work that failed, 2 for an argument or a file that is wrong."""
    screen.print("error", style="bold red", end=": ")
    say(screen, message)
    return typer.Exit(status)

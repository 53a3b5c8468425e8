"""``fastmlip lammps-export`` and ``fastmlip lammps-plugin``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
def lammps_export(
    model: Annotated[
        Path,
        typer.Argument(
            help="NequIP or Allegro checkpoint (.ckpt), package (.nequip.zip) or config (.yaml)."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Model to write (.lammps.pt2).")
    ],
    tabulate: Annotated[
        bool, typer.Option("--tabulate", help="With tables of the distance, which is faster.")
    ] = False,
    tol: Annotated[
        float,
        typer.Option(help="Of tables: largest error of a force component, in eV/Angstrom."),
    ] = 1e-5,
    structures: Annotated[
        Path | None,
        typer.Option(help="Of tables: a file that ASE reads, to compare forces on."),
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(help="avx512, avx2 or portable: the processors that shall run it. Default: "
                     "the best of this one."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or float64, of a config or checkpoint.")
    ] = None,
) -> None:  # fmt: skip
    """Compile a trained NequIP or Allegro model for pair_style fastmlip of LAMMPS.

    MODEL is a program that runs when it is loaded: take only files of people you trust.
    Energies and forces of the compiled model are compared with the model's own on made-up
    structures.
    """
    screen = Console(stderr=True)
    must_exist(model, "MODEL")
    if not model.name.endswith((".ckpt", ".nequip.zip", ".yaml", ".yml")):
        raise typer.BadParameter(
            f"expected a checkpoint (.ckpt), a package (.nequip.zip) or a config (.yaml), got "
            f"{model.name}",
            param_hint="MODEL",
        )
    if not output.name.endswith(".lammps.pt2"):
        raise typer.BadParameter(f"{output} must end in .lammps.pt2", param_hint="--output")
    must_be_writable(output, "--output")
    must_be_tolerance(tol, structures)
    if structures is not None and not tabulate:
        raise typer.BadParameter("goes with --tabulate", param_hint="--structures")
    try:
        from fastmlip.integrations import hosts
        from fastmlip.integrations.nequip import lammps

        lammps.inductor_options(isa)
        with screen.status("compiling with AOTInductor"):
            host = hosts.load(model, dtype)
            notes = host.notes
            if tabulate:
                fast = fastmlip.tabulate(host.model, tol, frames_of(structures))
            else:
                fast = fastmlip.accelerate(host.model)
            metadata = lammps.export(hosts.describe(fast), output, isa)
    except Exception as error:  # whatever NequIP and AOTInductor may raise
        raise failed(screen, f"{type(error).__name__}: {error}") from None
    for note in notes:
        say(screen, note)
    show(metadata, str(output), "fastmlip_")


@app.command()
def lammps_plugin(
    headers: Annotated[
        Path | None,
        typer.Option(help="LAMMPS's src folder. Default: the package lammps."),
    ] = None,
    mpi: Annotated[
        Path | None, typer.Option(help="Folder of MPI. Default: the package mpich, else mpicc.")
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="smallbig, bigbig or smallsmall, as your LAMMPS was compiled.")
    ] = "smallbig",
    force: Annotated[bool, typer.Option("--force", help="Compile again.")] = False,
) -> None:
    """Compile pair_style fastmlip for the LAMMPS that is here, and print the line that loads it.

    The line goes to standard output, what it was compiled for to standard error.
    """
    from fastmlip import lammps_plugin as plugin

    screen = Console(stderr=True)
    try:
        with screen.status("compiling"):
            built = plugin.build(headers, mpi, sizes, force)
    except (plugin.PluginError, ValueError) as error:
        raise failed(screen, str(error), 2) from None
    for question, answer in built.about.items():
        say(screen, f"{question}: {answer}")
    typer.echo(f"plugin load {built.path}")

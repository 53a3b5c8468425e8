"""``fastmlip gpu-report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from fastmlip.cli.common import app, failed, say


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

    Needs Triton and no GPU. Nothing is measured. Exit status 1 where a kernel does not compile,
    spills registers or has atomics.
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


def _known(given: list[str] | None, known: list[str], option: str) -> list[str]:
    for name in given or ():
        if name not in known:
            raise typer.BadParameter(
                f"expected one of {', '.join(known)}, got {name!r}", param_hint=option
            )
    return given or known

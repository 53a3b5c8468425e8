"""``fastmlip bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastmlip.cli.common import app, failed, say


@app.command()
def bench(
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for index.html, results.json, results.csv and pytest.log."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Run nothing: take a finished results.json, report folder, or "
                     "JSON of pytest-benchmark."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Run nothing: compare two reports, before and after."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Of a comparison: what may be slower, as a fraction.")
    ] = 0.2,
    keyword: Annotated[
        str | None,
        typer.Option("-k", help="Rows to run, of all, as in pytest -k: 'zbl and forward'."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All rows, instead of those that take ten minutes.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    blocks: Annotated[
        int, typer.Option(min=1, help="Time each row that many times, in turns with its peers.")
    ] = 3,
    seconds: Annotated[
        float, typer.Option(min=0, help="Longest time of a row; three rounds at least.")
    ] = 2.0,
) -> None:  # fmt: skip
    """Time the operators against other implementations, on this machine, within ten minutes.

    All rows take far longer: the time is said before they run. The last thing printed is a table of
    ratios, the time of the other implementation over that of fastmlip, by operator and model.

    The exit status is 1 where a row failed or, with --compare, became slower than --tolerance
    allows in its median and in its best round.
    """
    screen = Console(stderr=True)
    try:
        from fastmlip.bench import report as pages
        from fastmlip.bench import results
        from fastmlip.bench.run import SuiteError, run
        from fastmlip.bench.summary import text
    except ImportError as error:
        raise failed(screen, f"the benchmarks cannot be loaded: {error}") from None
    if compare is not None and (report or source):
        raise typer.BadParameter("goes with neither --report nor --from", param_hint="--compare")
    try:
        if compare is not None:
            found = [results.load(path) for path in compare]
            raise typer.Exit(_compare(found[0], found[1], tolerance, screen))
        if source is not None:
            timed = results.load(source)
        else:
            options = [f"--threads={threads}", f"--device={device}", f"--blocks={blocks}"]
            options += [f"--seconds={seconds}", *(("-k", keyword) if keyword else ())]
            options += ["--all"] if everything or keyword else []
            timed = run(options, report and report / "pytest.log", screen)
        if report is not None:
            page = pages.write(timed, report)
            say(screen, f"{page}")
    except (OSError, ValueError, SuiteError, ImportError) as error:
        raise failed(screen, str(error)) from None
    if warning := results.busy(timed):
        say(screen, warning)
    for line in text(timed):
        typer.echo(line)
    if wrong := timed.environment.get("failed"):
        raise failed(screen, f"{len(wrong)} rows failed and were not timed: {', '.join(wrong)}")


def _compare(before: Any, after: Any, tolerance: float, screen: Console) -> int:
    from fastmlip.bench import report as pages
    from fastmlip.bench import results

    both, gone, new = results.changes(before, after)
    if not any(change.after.ours for change in both):
        raise ValueError("the two reports have no row of fastmlip in common")
    for line in results.differences(before, after):
        say(screen, f"not the same: {line}")
    for text, report in (("before", before), ("after", after)):
        if warning := results.busy(report):
            say(screen, f"{text}: {warning}")
    table, slower = pages.compared(before, after, tolerance)
    Console().print(table)
    for text, rows in (("only before", gone), ("only after", new)):
        for row in rows[:5]:
            say(screen, f"{text}: {row.name}, {row.who}")
        if len(rows) > 5:
            say(screen, f"{text}: {len(rows) - 5} more")
    if peers := [change.mins for change in both if not change.after.ours]:
        ratio = results.ratio(results.mean(peers), 3)
        say(screen, f"peers, which did not change: {ratio} times as long (geometric mean)")
    say(screen, f"{len(slower)} rows slower by more than {tolerance:.0%}")
    return 1 if slower else 0

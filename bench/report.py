"""The HTML page of a report, and the table of two reports."""

from __future__ import annotations

import base64
from pathlib import Path

from rich.table import Table

from .results import Change, Pair, Report, busy, changes, duration, pairs, ratio, save
from .summary import lines, peaks


def write(report: Report, folder: Path) -> Path:
    """``index.html`` with its images inside, ``results.json`` and ``results.csv``; the page."""
    import jinja2

    from .plots import figures

    save(report, folder)
    source = (Path(__file__).parent / "report.html.jinja").read_text()
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(source)
    page = folder / "index.html"
    page.write_text(
        template.render(
            environment={"failed": [], "steps": [], **report.environment},
            figures=[(t, c, base64.b64encode(png).decode()) for t, c, png in figures(report)],
            lines=lines(pairs(report.rows)),
            tables=_tables(report),
            peaks=peaks(pairs(report.rows)),
            duration=duration,
            ratio=ratio,
            busy=busy(report),
        )
    )
    return page


def _tables(report: Report) -> dict[str, tuple[list[Pair], set[str]]]:
    """Of each operator its pairs of times, and which of the optional columns they fill."""
    found: dict[str, list[Pair]] = {}
    for pair in pairs(report.rows):
        if not pair.ours.peak_mib:
            found.setdefault(pair.ours.operator, []).append(pair)
    columns = ("size_of", "gflops", "gbs", "note")
    return {
        operator: (rows, {c for c in columns if any(getattr(p.ours, c) for p in rows)})
        for operator, rows in found.items()
    }


def compared(before: Report, after: Report, tolerance: float) -> tuple[Table, list[Change]]:
    """A table of all rows of fastmlip that both have, and those that became slower."""
    both = [change for change in changes(before, after)[0] if change.after.ours]
    table = Table("row", "before", "after", "after / before: medians", "minima", "")
    for change in both:
        slower, faster = change.slower(tolerance), change.faster(tolerance)
        table.add_row(
            f"{change.after.name}, {change.after.who}",
            duration(change.before.median),
            duration(change.after.median),
            ratio(change.medians, 3),
            ratio(change.mins, 3),
            "[red]slower[/]" if slower else "[green]faster[/]" if faster else "",
        )
    return table, [change for change in both if change.slower(tolerance)]

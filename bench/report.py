"""The HTML page of a report, and the table of two reports."""

from __future__ import annotations

import base64
from pathlib import Path

from rich.table import Table

from .results import Change, Pair, Report, busy, changes, duration, mean, pairs, save


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
            environment={"failed": [], **report.environment},
            figures=[(t, c, base64.b64encode(png).decode()) for t, c, png in figures(report)],
            means=means(pairs(report.rows)),
            pairs=pairs(report.rows),
            duration=duration,
            busy=busy(report),
        )
    )
    return page


def means(found: list[Pair]) -> list[tuple[str, str, str, int, float, float]]:
    """Operator, what, peer, number of rows, geometric means of both ratios."""
    groups: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in found:
        if not pair.ours.peak_mib:
            key = (pair.ours.operator, pair.ours.what, pair.peer.who)
            groups.setdefault(key, []).append(pair)
    return [
        (*key, len(group), mean([p.medians for p in group]), mean([p.mins for p in group]))
        for key, group in groups.items()
    ]


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
            f"{change.medians:.2f}",
            f"{change.mins:.2f}",
            "[red]slower[/]" if slower else "[green]faster[/]" if faster else "",
        )
    return table, [change for change in both if change.slower(tolerance)]

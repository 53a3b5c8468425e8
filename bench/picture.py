"""The picture of README and docs, from a report of ``fastmlip bench -k bench_inference``.

python -m fastmlip.bench.picture REPORT docs/figures/whole_models.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import typer

from .results import Report, load

FORMS = {"fastmlip exact": ("exact", "#4c72b0"), "fastmlip tabulated": ("tabulated", "#c44e52")}


def ratios(report: Report) -> dict[str, dict[str, float]]:
    """By model and system, ``{"fastmlip exact": 9.1, ...}``: medians of the faster stock form over
    those of ours.

    Raises:
        ValueError: the report has no row of whole models.
    """
    found: dict[str, dict[str, float]] = {}
    groups: dict[tuple, dict[str, float]] = {}
    for row in report.rows:
        if row.what.startswith("energy+forces, "):
            groups.setdefault(row.group, {})[row.who] = row.median
    for (_, case, what, _, size), times in groups.items():
        stock = [time for who, time in times.items() if who not in FORMS]
        if stock and all(form in times for form in FORMS):
            system = what.split("-atom ")[-1]
            label = f"{case}\n{size:,} atoms\n{system}"
            found[label] = {form: min(stock) / times[form] for form in FORMS}
    if not found:
        raise ValueError("the report has no row of bench_inference with stock, exact and tabulated")
    return found


def draw(report: Report, file: Path) -> None:
    """Bars, a pair for each model and system; the file's ending says the format."""
    bars = ratios(report)
    machine, versions = report.environment["machine"], report.environment["versions"]
    figure, axis = plt.subplots(
        figsize=(max(5.6, 0.7 + 0.95 * len(bars)), 3.4), layout="constrained"
    )
    for n, (form, (label, color)) in enumerate(FORMS.items()):
        heights = [bar[form] for bar in bars.values()]
        places = [i + 0.4 * (n - 0.5) for i in range(len(bars))]
        drawn = axis.bar(places, heights, 0.38, label=f"fastmlip, {label}", color=color)
        axis.bar_label(drawn, [f"{height:.2g}" for height in heights], fontsize=8)
    axis.axhline(1, color="black", lw=0.8)
    axis.text(len(bars) - 0.5, 1.3, "stock", ha="right", fontsize=8)
    axis.set_xticks(range(len(bars)), list(bars), fontsize=8)
    axis.set_ylabel("times as fast as stock", fontsize=9)
    axis.set_title(
        f"Energy and forces of compiled models, float32, 2 threads. {machine['processor']},\n"
        f"torch {versions['torch'].split('+')[0]}, {report.environment['date'][:10]}",
        fontsize=8, loc="left",
    )  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.2)
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    matplotlib.rcParams["svg.hashsalt"] = "fastmlip"  # the same file for the same numbers
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def main(
    report: Annotated[Path, typer.Argument(help="Folder or results.json of `fastmlip bench`.")],
    file: Annotated[Path, typer.Argument(help="Picture to write, .svg or .png.")],
) -> None:
    """Draw how many times faster than stock whole models are."""
    draw(load(report), file)


if __name__ == "__main__":
    typer.run(main)

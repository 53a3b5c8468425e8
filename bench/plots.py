"""Figures of a report, as PNG bytes: ratios, roofline, scaling in the number of edges or atoms."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .results import COPY, PRODUCT, Report, Row, pairs

COLORS = ["#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#da8bc3"]
OUR_COLOR = "#c44e52"
MARKERS = {"forward": "o", "forward+backward": "s", "forward+backward+double backward": "^"}
PNG = bytes


def figures(report: Report) -> Iterator[tuple[str, str, PNG]]:
    """``(title, caption, image)`` of every figure that the rows allow."""
    for operator in dict.fromkeys(row.operator for row in report.rows):
        rows = [row for row in report.rows if row.operator == operator]
        if image := ratios(rows):
            caption = (
                "Time of the peer over that of fastmlip; right of the line, fastmlip is faster. "
                "Bars: medians. Diamonds: best rounds. Where they are far apart, the machine was "
                "busy: look at the diamonds."
            )
            yield f"{operator}: ratios", caption, image
        for case, image in scalings(rows):
            caption = "Best round of each size. Lines of slope one double with the size."
            yield f"{operator}: scaling, {case}", caption, image
    if image := roofline(report):
        caption = (
            "Nominal operations and compulsory bytes of each row over the time of its best round: "
            "each operand read once, each result written once. The lines are a copy and a float32 "
            "matrix product, measured in the same session. Neither is a limit of the hardware."
        )
        yield "Roofline", caption, image


def _png(figure: Figure) -> PNG:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _colors(rows: Sequence[Row]) -> dict[str, str]:
    """One color for each implementation, the same in every figure of these rows."""
    peers = dict.fromkeys(row.who for row in rows if not row.ours)
    ours = dict.fromkeys(row.who for row in rows if row.ours)
    colors = {who: COLORS[n % len(COLORS)] for n, who in enumerate(peers)}
    return {**colors, **{who: OUR_COLOR if n == 0 else "#e8a0a2" for n, who in enumerate(ours)}}


def ratios(rows: Sequence[Row]) -> PNG | None:
    """Bars, a panel for each of forward, forward+backward, ...; a line for each case and size."""
    found = [pair for pair in pairs(rows) if not pair.ours.peak_mib]
    if not found:
        return None
    whats = list(dict.fromkeys(pair.ours.what for pair in found))
    lines = list(dict.fromkeys(_line(pair.ours) for pair in found))
    several = len({pair.ours.who for pair in found}) > 1
    names = {id(p): f"{p.peer.who} / {p.ours.who}" if several else p.peer.who for p in found}
    bars = list(dict.fromkeys(names.values()))
    figure, axes = plt.subplots(
        1, len(whats), sharey=True, sharex=True, squeeze=False, layout="constrained",
        figsize=(3.0 + 2.4 * len(whats), 1.3 + len(lines) * (0.12 + 0.13 * len(bars))),
    )  # fmt: skip
    for axis, what in zip(axes[0], whats, strict=True):
        for pair in (pair for pair in found if pair.ours.what == what):
            number = bars.index(names[id(pair)])
            y = lines.index(_line(pair.ours)) + 0.8 * ((number + 0.5) / len(bars) - 0.5)
            color = COLORS[number % len(COLORS)]
            axis.barh(y, pair.medians - 1, 0.8 / len(bars), left=1, color=color)
            axis.plot(pair.mins, y, "D", ms=2.5, color="black")
        axis.axvline(1, color="black", lw=0.8)
        axis.set(xscale="log", xlabel="peer / fastmlip", axisbelow=True)
        axis.xaxis.label.set_fontsize(7)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(what.replace("+double", "\n+double"), fontsize=8)
        axis.grid(axis="x", which="both", alpha=0.25)
        axis.tick_params(labelsize=7)
    axes[0, 0].set_yticks(range(len(lines)), lines)
    axes[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[n % len(COLORS)]) for n in range(len(bars))]
    figure.legend(handles, bars, loc="outside lower center", ncols=len(bars), fontsize=8)
    return _png(figure)


def _line(row: Row) -> str:
    return f"{row.case}, {row.size:,} {row.size_of}" if row.size_of else row.case


def scalings(rows: Sequence[Row]) -> Iterator[tuple[str, PNG]]:
    """A figure for each case that was timed in three sizes or more."""
    colors = _colors(rows)
    for case in dict.fromkeys(row.case for row in rows):
        mine = [row for row in rows if row.case == case and row.size_of]
        if len({row.size for row in mine}) < 3:
            continue
        whats = list(dict.fromkeys(row.what for row in mine))
        figure, axes = plt.subplots(
            1, len(whats), sharey=True, squeeze=False, layout="constrained",
            figsize=(1.2 + 2.5 * len(whats), 3.0),
        )  # fmt: skip
        for axis, what in zip(axes[0], whats, strict=True):
            for who in colors:
                line = sorted((r.size, r.min * 1e3) for r in mine if (r.who, r.what) == (who, what))
                if line:
                    axis.plot(*zip(*line, strict=True), "o-", ms=4, color=colors[who], label=who)
            axis.set(xscale="log", yscale="log", xlabel=mine[0].size_of)
            axis.set_title(what.replace("+double", "\n+double"), fontsize=8)
            axis.grid(which="both", alpha=0.25)
            axis.tick_params(labelsize=7)
        axes[0, 0].set_ylabel("ms")
        axes[0, 0].legend(fontsize=7)
        yield case, _png(figure)


def roofline(report: Report) -> PNG | None:
    """Achieved GFLOP/s over operations per byte."""
    rows = [row for row in report.rows if row.flops and row.moved]
    if not rows or not report.environment["peaks"]:
        return None
    colors = _colors(rows)
    product, copy = (report.environment["peaks"][peak] for peak in (PRODUCT, COPY))
    figure, axis = plt.subplots(figsize=(9.5, 5.0), layout="constrained")
    intensity = [row.flops / row.moved for row in rows if row.flops and row.moved]
    left, right = min(intensity) / 2, max(*intensity, product / copy) * 3
    ridge = min(max(product / copy, left), right)
    axis.plot([left, ridge], [left * copy, ridge * copy], "k-", lw=1)
    axis.plot([ridge, right], [product, product], "k-", lw=1)
    axis.text(
        right, product * 1.06, f"matrix product {product:.0f} GFLOP/s", ha="right", fontsize=8
    )
    axis.text(left, left * copy * 1.8, f"copy {copy:.0f} GB/s", fontsize=8)
    for row, x in zip(rows, intensity, strict=True):
        axis.plot(
            x, row.gflops, MARKERS.get(row.what, "D"), ms=4.5, color=colors[row.who], alpha=0.8
        )
    axis.set(
        xscale="log", yscale="log", xlabel="operations per compulsory byte", ylabel="GFLOP/s"
    )  # fmt: skip
    whats = dict.fromkeys(row.what for row in rows)
    handles = [Line2D([], [], ls="", marker="o", color=c, label=who) for who, c in colors.items()]
    handles += [
        Line2D([], [], ls="", marker=MARKERS.get(w, "D"), color="grey", label=w) for w in whats
    ]
    figure.legend(handles=handles, fontsize=7, loc="outside right upper")
    axis.grid(which="both", alpha=0.25)
    return _png(figure)

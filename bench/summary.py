"""What a run ends with: one table of ratios by operator and model, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .results import OURS, Pair, Report, duration, mean, pairs, ratio


class Line(NamedTuple):
    """All sizes of one operator with one model's irreps, against one peer."""

    operator: str
    model: str
    what: str
    peer: str
    form: str  # of fastmlip, where there are several
    pairs: list[Pair]

    @property
    def medians(self) -> float:
        return mean([pair.medians for pair in self.pairs])

    @property
    def mins(self) -> float:
        return mean([pair.mins for pair in self.pairs])

    @property
    def peer_times(self) -> str:
        return _span([pair.peer.median for pair in self.pairs])

    @property
    def times(self) -> str:
        return _span([pair.ours.median for pair in self.pairs])


def _span(times: Sequence[float]) -> str:
    ends = dict.fromkeys(duration(time) for time in (min(times), max(times)))
    return " to ".join(ends)


def lines(found: Sequence[Pair]) -> list[Line]:
    """Of pairs of times, in their order."""
    groups: dict[tuple[str, str, str, str, str], list[Pair]] = {}
    for pair in found:
        ours, peer = pair
        if not ours.peak_mib:
            form = ours.who.removeprefix(OURS).strip()
            key = (ours.operator, ours.case, ours.what, peer.who, form)
            groups.setdefault(key, []).append(pair)
    return [Line(*key, group) for key, group in groups.items()]


def peaks(found: Sequence[Pair]) -> list[Pair]:
    """Pairs of peak memory."""
    return [pair for pair in found if pair.ours.peak_mib and pair.peer.peak_mib]


def text(report: Report) -> list[str]:
    """What has no peer, with its note; peak memory; and last, the table of ratios."""
    found = pairs(report.rows)
    paired = {pair.ours.group for pair in found}
    said = [f"{row.name}  {row.note}" for row in report.rows
            if row.ours and row.note and row.group not in paired]  # fmt: skip
    memory = [
        (ours.operator, ours.case, ours.what, peer.who, f"{peer.peak_mib:.0f} MiB",
         f"{ours.peak_mib:.0f} MiB", ratio(peer.peak_mib / ours.peak_mib))
        for ours, peer in peaks(found)
    ]  # fmt: skip
    head = ("operator", "model", "timed", "peer")
    said += _table((*head, "of the peer", "of fastmlip", "ratio"), memory)
    timed = lines(found)
    forms = any(line.form for line in timed)
    ratios = [
        (*line[:4], *((line.form,) if forms else ()), line.peer_times, line.times,
         ratio(line.medians), ratio(line.mins))
        for line in timed
    ]  # fmt: skip
    head += ("form",) if forms else ()
    said += _table((*head, "of the peer", "of fastmlip", "ratio", "of best rounds"), ratios)
    return said


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, ["-" * width for width in widths], *rows)
    ] + [""]

"""Rows of results: from pytest-benchmark's JSON, to JSON and CSV, their ratios and comparison."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

PRODUCT, COPY = "matrix product GFLOP/s", "copy GB/s"  # names of the measured peaks
OURS = "fastmlip"  # rows of fastmlip: this name, or one that begins with it


@dataclass(frozen=True)
class Row:
    """Times of one implementation, in seconds for one call; of all blocks together."""

    operator: str
    case: str
    what: str
    size_of: str
    size: int
    who: str
    median: float
    min: float
    iqr: float
    rounds: int
    threads: int
    device: str
    flops: float | None = None
    moved: float | None = None
    peak_mib: float | None = None
    note: str = ""

    @property
    def group(self) -> tuple:
        """Rows with the same group are compared with each other."""
        return self.operator, self.case, self.what, self.size_of, self.size

    @property
    def name(self) -> str:
        size = f"{self.size:,} {self.size_of}" if self.size_of else ""
        return " ".join(part for part in (self.operator, self.case, size, self.what) if part)

    @property
    def ours(self) -> bool:
        return self.who.startswith(OURS)

    @property
    def gflops(self) -> float | None:
        """Achieved, of the best round."""
        return self.flops / self.min / 1e9 if self.flops else None

    @property
    def gbs(self) -> float | None:
        """Compulsory bytes over the time of the best round."""
        return self.moved / self.min / 1e9 if self.moved else None

    def of_roofline(self, peaks: dict[str, float]) -> float | None:
        """The time that the measured peaks allow, over that of the best round."""
        if not (self.gflops and self.gbs):
            return None
        return max(self.gflops / peaks[PRODUCT], self.gbs / peaks[COPY])


class Report(NamedTuple):
    """Rows and where they come from."""

    environment: dict[str, Any]
    rows: list[Row]


def collect(benchmarks: Iterable[dict[str, Any]]) -> list[Row]:
    """Rows of pytest-benchmark's list; blocks of the same row are merged."""
    blocks: dict[tuple, list[dict[str, Any]]] = {}
    for benchmark in benchmarks:
        extra = benchmark["extra_info"]
        key = tuple(str(extra.get(k)) for k in ("operator", "case", "what", "size", "who"))
        blocks.setdefault(key, []).append(benchmark)
    rows = []
    for merged in blocks.values():
        extra = merged[0]["extra_info"]
        times = [time for block in merged for time in block["stats"]["data"]]
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [0.0, 0.0, 0.0]
        size_of, size = extra.get("size") or ("", 0)
        known = {k: extra[k] for k in ("flops", "moved", "peak_mib", "note") if k in extra}
        rows.append(
            Row(
                extra["operator"], extra["case"], extra["what"], size_of, size, extra["who"],
                statistics.median(times), min(times), quartiles[2] - quartiles[0], len(times),
                extra["threads"], extra["device"], **known,
            )
        )  # fmt: skip
    return rows


def load(path: Path) -> Report:
    """From a report's folder or its results.json, or from pytest-benchmark's JSON.

    Raises:
        ValueError: the file is neither.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if isinstance(content, dict) and "rows" in content:
        names = {field.name for field in fields(Row)}
        rows = [Row(**{k: v for k, v in r.items() if k in names}) for r in content["rows"]]
        return Report(content["environment"], rows)
    if isinstance(content, dict) and "benchmarks" in content and "fastmlip" in content:
        return Report(content["fastmlip"], collect(content["benchmarks"]))
    raise ValueError(
        f"{path}: expected a results.json of `fastmlip bench --report`, or the JSON that "
        "`pytest bench --benchmark-json` writes"
    )


def save(report: Report, folder: Path) -> None:
    """``results.json`` with everything, and ``results.csv`` with a line for each row."""
    folder.mkdir(parents=True, exist_ok=True)
    derived = [{**asdict(r), "gflops": r.gflops, "gbs": r.gbs} for r in report.rows]
    content = {"environment": report.environment, "rows": derived}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    where = report.environment
    common = {
        "date": where["date"],
        "commit": where["commit"],
        "processor": where["machine"]["processor"],
        "cores": where["machine"]["cores"],
        "gpu": where["machine"]["gpu"],
        **{f"{name} version": version for name, version in where["versions"].items()},
        **where["peaks"],
    }
    with (folder / "results.csv").open("w", newline="") as file:
        names = [*(derived[0] if derived else []), *common]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**row, **common} for row in derived)


class Pair(NamedTuple):
    """A row of fastmlip, and a peer's of the same group."""

    ours: Row
    peer: Row

    @property
    def medians(self) -> float:
        return self.peer.median / self.ours.median

    @property
    def mins(self) -> float:
        return self.peer.min / self.ours.min


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """Each peer with each row of fastmlip in its group, in the order of the rows."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [
        Pair(ours, peer)
        for group in groups.values()
        for ours in group
        if ours.ours
        for peer in group
        if not peer.ours
    ]


def duration(seconds: float) -> str:
    """With its unit, three digits."""
    units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
    unit, scale = next((pair for pair in units if seconds >= pair[1]), units[-1])
    return f"{seconds / scale:.3g} {unit}"


def ratio(value: float, digits: int = 2) -> str:
    """With that many digits that count, and no exponent: 0.57, 5.7, 57, 3500."""
    rounded = float(f"{value:.{digits - 1}e}")
    behind = digits - 1 - math.floor(math.log10(rounded)) if rounded > 0 else 0
    return f"{rounded:.{max(behind, 0)}f}"


class Change(NamedTuple):
    """The same row in two reports. A change counts where medians and minima agree on it."""

    before: Row
    after: Row

    @property
    def medians(self) -> float:
        return self.after.median / self.before.median

    @property
    def mins(self) -> float:
        return self.after.min / self.before.min

    def slower(self, tolerance: float) -> bool:
        return min(self.medians, self.mins) > 1 + tolerance

    def faster(self, tolerance: float) -> bool:
        return max(self.medians, self.mins) < 1 / (1 + tolerance)


def changes(before: Report, after: Report) -> tuple[list[Change], list[Row], list[Row]]:
    """Rows that both have, and those that only the first and only the second has."""
    old = {(*row.group, row.who): row for row in before.rows}
    new = {(*row.group, row.who): row for row in after.rows}
    both = [Change(old[key], new[key]) for key in old if key in new]
    return (
        both,
        [row for key, row in old.items() if key not in new],
        [row for key, row in new.items() if key not in old],
    )


def differences(before: Report, after: Report) -> list[str]:
    """What of the two environments differs, of what changes times."""
    found = []
    for name in ("device", "threads", "machine", "versions"):
        a, b = before.environment[name], after.environment[name]
        if not isinstance(a, dict):
            a, b = {name: a}, {name: b}
        found += [f"{k}: {a.get(k)}, {b.get(k)}" for k in {**a, **b} if a.get(k) != b.get(k)]
    return found


def busy(report: Report) -> str:
    """A warning where other processes were at work before the run, else nothing."""
    load = report.environment["load before"]
    if load < 1:
        return ""
    return (
        f"Other processes were at work: the load average was {load} before the run. These numbers "
        "are not to be quoted."
    )


def mean(ratios: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))

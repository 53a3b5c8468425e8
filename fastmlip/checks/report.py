"""What a check found, as a table for a terminal and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.markup import escape

from fastmlip.integrations.swap import Row as ModuleRow

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
COLOURS = {PASSED: "green", FAILED: "bold red", SKIPPED: "dim"}


@dataclass
class Result:
    """One check.

    Attributes:
        error: the largest relative error of all structures, None where the check was skipped.
        where: the structure that has it.
        tolerance: of the table of checks.
        stock: what stock itself is off by, measured only where ``error`` is beyond ``tolerance``.
        status: ``passed``, ``failed`` or ``skipped``.
        note: why.
    """

    name: str
    what: str
    error: float | None
    where: str
    tolerance: float
    stock: float | None
    status: str
    note: str = ""


@dataclass
class Report:
    """All checks of a model, and what was checked.

    Attributes:
        model, kind, dtype, device: of the model.
        against: what it was compared with.
        results: a row for each check, in the order of the table.
        modules: a row for every module that fastmlip knows: swapped or kept, and why.
        operators: fastmlip's operators that ran, and how often, in one evaluation of energy,
            forces and second derivatives.
        backend: ``cpp``, ``triton``, ``reference``, or ``none``.
        structures: names, numbers of atoms and of edges.
        versions: of fastmlip, torch and what runs here.
        notes: what else a reader should know.
        asked: names of the checks that were asked for, where it was not all of them.
    """

    model: str
    kind: str
    dtype: str
    device: str
    seed: int
    against: str
    backend: str
    operators: dict[str, int]
    modules: list[ModuleRow]
    structures: list[dict[str, Any]]
    versions: dict[str, str]
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """No check failed, and none that was asked for by name was left out."""
        return not self.failed and not self.undone

    @property
    def undone(self) -> list[Result]:
        """Checks that were asked for by name and could not be done."""
        return [r for r in self.results if r.status == SKIPPED and r.name in self.asked]

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.status == FAILED]

    def __getitem__(self, name: str) -> Result:
        """The result of a check by its name."""
        return next(result for result in self.results if result.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON; what is not finite becomes a string."""
        plain = asdict(self)
        plain["modules"] = [row._asdict() for row in self.modules]
        for result in plain["results"]:
            for name, value in result.items():
                if isinstance(value, float) and not math.isfinite(value):
                    result[name] = str(value)
        return {"passed": self.passed, **plain}

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"

    def tables(self, width: int = 140) -> list[Any]:
        """Two tables for ``rich``: what was checked, and the checks.

        Below 120 columns the second one leaves out what each check is.
        """
        from rich.table import Table

        about = Table(show_header=False, title=self.model)
        ran = ", ".join(f"{name} {count}x" for name, count in self.operators.items())
        swapped = Counter((row.module, row.status, row.reason) for row in self.modules)
        for name, value in {
            "model": f"{self.kind}, {self.dtype}, {self.device}",
            "compared with": self.against,
            "backend": self.backend,
            "operators": ran,
            "modules": "\n".join(
                f"{count} {module} {status}" + (f": {reason}" if reason else "")
                for (module, status, reason), count in swapped.items()
            ),
            "structures": "\n".join(
                f"{row['name']}: {row['atoms']} atoms, {row['edges']} edges"
                for row in self.structures
            ),
            "notes": "\n".join(self.notes),
        }.items():
            if value:
                about.add_row(name, escape(value))
        checks, columns = Table(), ["check", "error", "tolerance", "stock", "result", "worst in"]
        if all(row.stock is None for row in self.results):
            columns.remove("stock")
        for column in [*columns, "what"] if width >= 120 else columns:
            checks.add_column(column, no_wrap=True, overflow="ellipsis")
        for row in self.results:
            cells = {
                "check": row.name,
                "error": _number(row.error),
                "tolerance": _number(row.tolerance),
                "stock": _number(row.stock),
                "result": f"[{COLOURS[row.status]}]{row.status}[/]",
                "worst in": escape(row.where),
                "what": row.what,
            }
            checks.add_row(*(cells[str(column.header)] for column in checks.columns))
        return [about, checks]

    def remarks(self) -> list[str]:
        """Why checks were skipped, and what went wrong in those that did not finish."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in self.results:
            if row.note:
                reasons.setdefault((row.status, row.note), []).append(row.name)
        return [f"{status}, {note}: {'; '.join(n)}" for (status, note), n in reasons.items()]


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"

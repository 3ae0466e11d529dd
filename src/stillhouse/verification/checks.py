"""One check: what was compared, how far apart the two sides are, and how far they may be."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Check:
    """A difference and its bound; `unit` says what both are measured in.

    A NaN never passes.
    """

    name: str
    compared: str
    difference: int | float
    bound: int | float
    unit: str

    @property
    def passed(self) -> bool:
        return math.isfinite(self.difference) and abs(self.difference) <= self.bound

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


SMALL = 0.01


def relative(found: int | float, expected: int | float) -> float:
    """|found - expected| as a share of the expected value, or of 0.01 where that is larger: the
    rounding of float32 logits would drown smaller ones."""
    return abs(found - expected) / max(abs(expected), SMALL)


def print_checks(title: str, checks: Iterable[Check]) -> None:
    """The checks as a table, on stdout."""
    table = Table("check", "compared with", title=title, title_justify="left")
    for column in ("off by", "at most", "unit", ""):
        table.add_column(column, no_wrap=True)
    for check in checks:
        verdict = "ok" if check.passed else "FAILED"
        figures = (f"{check.difference:.1e}", f"{check.bound:.0e}")
        table.add_row(check.name, check.compared, *figures, check.unit, verdict)
    Console(highlight=False, markup=False).print(table)

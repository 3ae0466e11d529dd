"""One check: what was compared, how far the two sides differ, and the bound."""

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from stillhouse.tokens.batches import AnyBatch
from stillhouse.training.job import Objective

EXACT = 1e-4  # relative: float32 against float64, or sums in another order
ZERO = 1e-5  # a row: rounding alone
SMALL = 0.01


@dataclass(frozen=True)
class Check:
    """A difference and its bound, both in `unit`. NaN never passes."""

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


def relative(found: int | float, expected: int | float) -> float:
    """|found - expected| / max(|expected|, 0.01).

    Below 0.01 the rounding of float32 logits dominates.
    """
    return abs(found - expected) / max(abs(expected), SMALL)


def worst(found: Mapping[str, float], expected: Mapping[str, float]) -> tuple[str, float]:
    """The term with the largest relative difference, and the difference. NaN is the largest."""
    apart = {name: relative(found[name], expected[name]) for name in expected}
    name = max(apart, key=lambda key: math.inf if math.isnan(apart[key]) else apart[key])
    return name, apart[name]


@torch.no_grad()
def means_of(
    objective: Objective, model: PreTrainedModel, batches: Iterable[AnyBatch]
) -> dict[str, float]:
    """Each term's mean over its rows in all batches together."""
    sums: dict[str, float] = {}
    counts = dict.fromkeys(objective.rows, 0)
    for batch in batches:
        for name, value in objective(model, batch.to(model.device), objective.weights)[1].items():
            sums[name] = sums.get(name, 0.0) + float(value.double())
        for name, rows in objective.rows.items():
            counts[name] += batch.num_rows(rows)
    return {name: value / max(1, counts[name]) for name, value in sums.items()}


def copy_check(
    objective: Objective,
    teacher: PreTrainedModel,
    batches: Sequence[AnyBatch],
    *,
    labels: str | None = None,
) -> Check:
    """For a copy of the teacher every term is 0, except the one that reads labels."""
    means = means_of(objective, deepcopy(teacher), batches)
    means.pop(labels or "", None)
    name = max(means, key=lambda key: abs(means[key]))
    compared = f"every term with 0 (farthest: {name})"
    return Check("student = teacher", compared, abs(means[name]), ZERO, "a row")


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

"""Loss on each part of the text, such as its languages, as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse import units
from stillhouse.report.results import (
    CONTROLS,
    Difference,
    SeedResult,
    Spread,
    label_of,
    models_of,
    spread_of,
)
from stillhouse.report.tables import NOT_FINITE, Cell, Table

COLUMNS = ("Training tokens", "Drawn", "Share")


def parts_of(results: Sequence[SeedResult]) -> Mapping[str, Any]:
    """How each part of the text is drawn; none of a text without parts."""
    return results[0].evaluation.get("parts") or {}


def loss_of(results: Sequence[SeedResult], model: str, part: str) -> Spread | None:
    """A model's loss on a part over the seeds, in nats per predicted token."""
    return spread_of(results, model, ("loss_by_part", part, "loss"))


def table_of(results: Sequence[SeedResult]) -> Table | None:
    """A row for each part: its size, how often an epoch has it, and every model's loss, medians
    over seeds; of one seed also the student minus its controls, with their intervals. None for a
    text without parts."""
    models, rows = models_of(results), []
    controls = [name for name in CONTROLS if name in models and len(results) == 1]
    for part, drawn in parts_of(results).items():
        size = (f"{drawn['tokens']:,}", units.times(drawn["repeats"]), f"{drawn['share']:.1%}")
        losses = [loss_of(results, model, part) for model in models]
        cells = [_number(loss and units.nats(loss.median)) for loss in losses]
        gaps = [_minus(results[0], control, part) for control in controls]
        rows.append((part, [*map(Cell, size), *cells, *gaps]))
    titles = [f"Student {units.MINUS} {label_of(control).lower()}" for control in controls]
    return Table([*COLUMNS, *map(label_of, models), *titles], rows) if rows else None


def _number(text: str | None, notes: Sequence[str] = ()) -> Cell:
    return Cell(NOT_FINITE, is_missing=True) if text is None else Cell(text, notes)


def _minus(result: SeedResult, control: str, part: str) -> Cell:
    found = result.evaluation["intervals"][control]["parts"][part]
    gap = Difference(found["value"], found["low"], found["high"])
    text = None if gap.value is None else f"{units.signed(gap.value)} nats"
    return _number(text, [gap.interval()] if gap.interval() else [])

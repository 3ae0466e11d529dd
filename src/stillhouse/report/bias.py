"""The table of bias: one row per set and metric, one column per model."""

from collections.abc import Sequence
from typing import Any

from stillhouse import units
from stillhouse.report.results import SeedResult, label_of, models_of
from stillhouse.report.tables import Cell, Table
from stillhouse.report.zero_shot import score_cell
from stillhouse.tasks.metrics import format_score, metric_label

WARNING = (
    "These are a few sets of English sentences and stereotypes, most of them of the United States. "
    "A value near the ideal does not show that a model has no bias."
)


def table_of(results: Sequence[SeedResult], *, main_only: bool = False) -> Table | None:
    """The metrics with their intervals, and how much further from the ideal value the student is
    than its teacher; of several seeds the median with the smallest and largest value. None without
    data sets.

    Args:
        main_only: Leave out metrics other than the main one of each set.
    """
    found = [sets for each in results if (sets := each.evaluation.get("bias"))]
    if len(found) < len(results):
        return None
    models, rows = models_of(results), []
    for name, first in found[0].items():
        own = [each[name] for each in found]
        metrics = sorted(first["models"]["student"], key=lambda metric: metric != first["metric"])
        for metric in metrics[:1] if main_only else metrics:
            ideal = first["ideal"][metric]
            label = f"{name}, {metric_label(metric)} (ideal {format_score(ideal, 0)})"
            rows.append((label, [*_cells(own, models, metric), _change(own, metric)]))
    return Table([*map(label_of, models), "Student further from ideal by"], rows)


def _cells(own: Sequence[Any], models: Sequence[str], metric: str) -> list[Cell]:
    values = [
        value
        for each in own
        for model in models
        if (value := each["models"][model][metric]["value"]) is not None
    ]
    digits = 3 if all(abs(value) <= 1 for value in values) else 1
    return [
        score_cell(
            [each["models"][model][metric] for each in own],
            lambda value: format_score(value, digits),
        )
        for model in models
    ]


def _change(own: Sequence[Any], metric: str) -> Cell:
    """The change of bias; of one seed with its verdict."""
    changes = [each["bias_change"][metric] for each in own]
    digits = 3 if all(abs(each["value"] or 0) <= 1 for each in changes) else 1
    cell = score_cell(changes, lambda value: units.signed(value, digits))
    if len(changes) > 1 or cell.is_missing:
        return cell
    return Cell(cell.text, [*cell.notes, verdict(changes[0])])


def verdict(change: Any) -> str:
    """What a change with its interval says."""
    if change["low"] > 0:
        return "further from ideal"
    return "nearer to ideal" if change["high"] < 0 else "no significant difference"

"""The table of zero-shot scores: one row per data set and metric, one column per model."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse import units
from stillhouse.report.results import SeedResult, label_of, models_of
from stillhouse.report.tables import NOT_FINITE, Cell, Table
from stillhouse.tasks.metrics import format_score, metric_label

Values = Mapping[str, float | None]
DIGITS = 3
AT_CHANCE = "teacher at chance"


def table_of(results: Sequence[SeedResult], *, main_only: bool = False) -> Table | None:
    """The scores with their intervals, the share of the teacher's gain over chance that each other
    model kept, and the difference of student and teacher; of several seeds the median with the
    smallest and largest value. None without data sets.

    Args:
        main_only: Leave out metrics other than the main one of each data set.
    """
    found = [scores for each in results if (scores := each.evaluation.get("zero_shot"))]
    if len(found) < len(results):
        return None
    models, rows = models_of(results), []
    for name, first in found[0]["sets"].items():
        own = [each["sets"][name] for each in found]
        metrics = sorted(first["models"]["student"], key=lambda metric: metric != first["metric"])
        for metric in metrics[:1] if main_only else metrics:
            cells = [
                _score(own, model, metric, with_gain=metric == first["metric"]) for model in models
            ]
            gaps = [each["differences"]["student minus teacher"][metric] for each in own]
            label = f"{name}, {metric_label(metric)}"
            rows.append(
                (label, [*cells, score_cell(gaps, lambda value: units.signed(value, DIGITS))])
            )
    kept = [Cell("") if model == "teacher" else _kept(found, model) for model in models]
    rows.append(("Gain over chance kept", [*kept, Cell("")]))
    return Table([*map(label_of, models), f"Student {units.MINUS} teacher"], rows)


def _score(own: Sequence[Any], model: str, metric: str, *, with_gain: bool) -> Cell:
    """A model's metric on a data set, beside the share of the gain that it kept."""
    cell = score_cell([each["models"][model][metric] for each in own], _show)
    if not with_gain or model == "teacher":
        return cell
    kept = _kept(own, model)
    return Cell(cell.text, [*cell.notes, f"gain kept: {kept.text}"], cell.is_missing)


def _kept(found: Sequence[Any], model: str) -> Cell:
    shares = [each["gain_kept"][model] for each in found]
    if None in shares:
        return Cell(AT_CHANCE)
    return score_cell(shares, units.percent)


def _show(value: float) -> str:
    return format_score(value, DIGITS)


def score_cell(found: Sequence[Values], show: Callable[[float], str]) -> Cell:
    """A value with its interval; of several seeds the median with the extremes."""
    values = [each["value"] for each in found]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Cell(NOT_FINITE, is_missing=True)
    ends = (found[0]["low"], found[0]["high"]) if len(known) == 1 else (min(known), max(known))
    shown = [show(end) for end in ends if end is not None]
    return Cell(show(statistics.median(known)), [" to ".join(shown)] if len(shown) == 2 else [])

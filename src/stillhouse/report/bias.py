"""The table of bias: one row per set and metric, one column per model."""

from collections.abc import Sequence
from typing import Any

from stillhouse import units
from stillhouse.report.results import SeedResult, label_of, models_of
from stillhouse.report.tables import NOT_FINITE, Cell, Table
from stillhouse.report.zero_shot import score_cell
from stillhouse.tasks.metrics import format_score, metric_label

SHOWN_WORDS = 6  # of a prompt
WARNING = (
    "These are a few sets of English sentences and stereotypes, most of them of the United States. "
    "A value near the ideal does not show that a model has no bias."
)


def values_of(results: Sequence[SeedResult], *, main_only: bool = False) -> dict[str, Any]:
    """What the templates of page and card show.

    Args:
        main_only: As in `table_of`.
    """
    table, words = table_of(results, main_only=main_only), words_of(results)
    return {"bias": table, "bias_warning": WARNING, "bias_words": words}


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


def words_of(results: Sequence[SeedResult]) -> Table | None:
    """The most frequent words after each template of the first seed's models, with their shares of
    the samples; None without templates."""
    sets = (results[0].evaluation.get("bias") or {}).values()
    details = [found for each in sets if (found := each.get("details"))]
    if not details:
        return None
    models, rows = models_of(results), []
    for found in details:
        prompts = {model: _shown(found.get(model)) for model in models}
        known = next(own for own in prompts.values() if own)
        for prompt in known:
            cells = [
                Cell(own[prompt][0], own[prompt][1:]) if own else Cell(NOT_FINITE, is_missing=True)
                for own in prompts.values()
            ]
            rows.append((prompt, cells))
    return Table([*map(label_of, models)], rows)


def _shown(found: Sequence[Any] | None) -> dict[str, list[str]]:
    """The words of each prompt with their shares, as text."""
    return {
        each["prompt"]: [
            f"{word or 'no word'} {units.percent(share)}"
            for word, share in [*each["words"].items()][:SHOWN_WORDS]
        ]
        for each in found or ()
    }


def verdict(change: Any) -> str:
    """What a change with its interval says."""
    if change["low"] > 0:
        return "further from ideal"
    return "nearer to ideal" if change["high"] < 0 else "no significant difference"

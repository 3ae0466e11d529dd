"""The comparison of models: one row per metric, one column per model, for page and card alike.

With several seeds a cell is the median, with the smallest and largest value as a note.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stillhouse import units
from stillhouse.evaluation.metrics.base import Metric
from stillhouse.evaluation.metrics.registry import metrics_of
from stillhouse.recipe import Recipe
from stillhouse.report.results import (
    CONTROLS,
    LOSS,
    SeedResult,
    Spread,
    differences,
    label_of,
    main_metric,
    models_of,
    noise,
    ratio_to_teacher,
    spread,
    spread_of,
)

NOT_FINITE = "no finite value"


@dataclass(frozen=True)
class Cell:
    """A number as text, with notes: its range or interval, its ratio to the teacher."""

    text: str
    notes: Sequence[str] = ()
    is_missing: bool = False


@dataclass(frozen=True)
class Table:
    """Column titles, and rows of a label and cells."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def metrics(recipe: Recipe) -> list[Metric]:
    """The rows of a recipe: the registered metrics, and the perplexity on each further text."""
    main = main_metric(recipe)
    found = []
    for metric in metrics_of(recipe.tokens.language_modeling):
        if metric.group == "agreement" and found[-1].group == "quality":
            found += [
                replace(main, key=("perplexity_of", text, "token"), label=f"{main.label}, {name}")
                for text in recipe.evaluation.perplexity[1:]
                if (name := Path(text).name) and main.language_modeling == "causal"
            ]
        found.append(metric)
    return found


def comparison(recipe: Recipe, results: Sequence[SeedResult]) -> Table:
    """Every metric of every model, medians over the seeds."""
    models = models_of(results)
    return Table(
        [*map(label_of, models)],
        [
            (metric.label, [_cell(results, model, metric) for model in models])
            for metric in metrics(recipe)
        ],
    )


def _cell(results: Sequence[SeedResult], model: str, metric: Metric) -> Cell:
    found, show = spread_of(results, model, metric.key), metric.unit.show
    if found is None:
        return Cell(metric.missing, is_missing=True)
    notes = _range(found, show)
    ratio = None if model == "teacher" else ratio_to_teacher(results, model, metric.key)
    if metric.unit.ratio and ratio:
        range_ = noise(results, model, metric)
        noisy = f", noisy: {units.between(*range_, units.times)}" if range_ else ""
        notes.append(ratio_note(metric.unit.ratio(ratio), "teacher") + noisy)
    return Cell(show(found.median), notes)


def ratio_note(ratio: str, base: str) -> str:
    """A ratio to a model: a share of it (60% of teacher), or times it."""
    return f"{ratio} of {base}" if ratio.endswith("%") else f"{ratio} {base}"


def by_seed(results: Sequence[SeedResult]) -> Table:
    """Every seed's validation loss per model, and the paired differences student minus control,
    each with its 95 % interval."""
    models = models_of(results)
    controls = [model for model in CONTROLS if model in models]
    rows = []
    for result in results:
        cells = [_number(result.value(model, LOSS), units.nats) for model in models]
        gaps = map(result.minus, controls)
        cells += [_number(gap.value, _signed_nats, [gap.interval()]) for gap in gaps]
        rows.append((f"Seed {result.seed}", cells))
    if len(results) > 1:
        cells = [_median(spread_of(results, model, LOSS), units.nats) for model in models]
        for control in controls:
            gap = spread([each.value for each in differences(results, control)])
            cells.append(_median(gap, _signed_nats))
        rows.append(("Median", cells))
    titles = [f"Student {units.MINUS} {label_of(control).lower()}" for control in controls]
    return Table([*map(label_of, models), *titles], rows)


def _median(found: Spread | None, show: Callable[[float], str]) -> Cell:
    return _number(found and found.median, show, _range(found, show) if found else [])


def _signed_nats(value: float) -> str:
    return f"{units.signed(value)} nats"


def _number(value: float | None, show: Callable[[float], str], notes: Sequence[str] = ()) -> Cell:
    if value is None:
        return Cell(NOT_FINITE, is_missing=True)
    return Cell(show(value), [note for note in notes if note])


def _range(each: Spread, show: Callable[[float], str]) -> list[str]:
    notes = []
    if show(each.low) != show(each.high):
        notes.append(units.between(each.low, each.high, show))
    if each.num_missing:
        seeds = "seed has" if each.num_missing == 1 else "seeds have"
        notes.append(f"{each.num_missing} {seeds} no value")
    return notes

"""Students of several runs side by side, with what their recipes do differently."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.text import Text

from stillhouse import terminal, units
from stillhouse.errors import OptionError
from stillhouse.evaluation.perplexity import UnitLosses, difference
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import load_recipe
from stillhouse.report import bias, zero_shot
from stillhouse.report.results import (
    SMALLEST_DIFFERENCE,
    Difference,
    SeedResult,
    read_results,
    spread_of,
)
from stillhouse.report.tables import metrics
from stillhouse.runs.manifest import flattened
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part

MISSING = "-"


class ComparedRun(NamedTuple):
    """A run with its recipe and results."""

    name: str
    recipe: Recipe
    results: Sequence[SeedResult]


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """The runs of these folders.

    Raises:
        OptionError: fewer than two.
        RunError: a run that is not evaluated, or damaged.
        RecipeError: a folder without a recipe, or a run without a student.
    """
    if len(folders) < 2:
        raise OptionError("compare-runs needs two or more folders of runs.")
    found = []
    for folder in folders:
        run = RunFolder.at(folder)
        _, recipe = load_recipe(str(run.recipe), [])
        if recipe.corpus is None:
            raise OptionError(f"{folder} has no student: its recipe has tasks alone.")
        results = read_results(recipe, run.of_seeds(recipe.seeds))
        found.append(ComparedRun(str(folder), recipe, results))
    return found


def compare_runs(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """The students' metrics, medians over seeds; the paired differences of their losses to that of
    the first run, where both were scored on the same text; and the settings that differ."""
    rows = {
        metric.label: [_median(each, metric.key) for each in runs]
        for metric in {m.label: m for each in runs for m in metrics(each.recipe)}.values()
    }
    return {
        "runs": [each.name for each in runs],
        "metrics": {label: values for label, values in rows.items() if any(_known(values))},
        "differences": [_difference(each, runs[0]) for each in runs[1:]],
        "settings": _settings(runs),
    }


def _known(values: Sequence[float | None]) -> list[bool]:
    return [value is not None for value in values]


def _median(run: ComparedRun, key: Any) -> float | None:
    found = spread_of(run.results, "student", key)
    return None if found is None else found.median


def _difference(run: ComparedRun, first: ComparedRun) -> dict[str, float | None] | None:
    """The loss of the first seed's student minus that of the first run's; None where the texts or
    their units differ."""
    own, other = (_losses(each.results[0].evaluation) for each in (run, first))
    if own is None or other is None or not np.array_equal(own.tokens, other.tokens):
        return None
    return difference(own, other)


def _losses(evaluation: Mapping[str, Any]) -> UnitLosses | None:
    found = evaluation.get("validation_units")
    sums = (found or {}).get("loss_sums", {}).get("student")
    if found is None or sums is None or None in sums:
        return None
    return UnitLosses(found["unit"], np.array(sums, np.float64), np.array(found["tokens"]))


def _settings(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """The keys of the recipes whose values differ."""
    flat = [flattened(recipe_part(each.recipe)) for each in runs]
    keys = sorted({key for own in flat for key in own})
    found = {key: [own.get(key) for own in flat] for key in keys}
    return {
        key: values
        for key, values in found.items()
        if len({json.dumps(value) for value in values}) > 1
    }


def print_comparison(runs: Sequence[ComparedRun], found: Mapping[str, Any]) -> None:
    """Print the comparison on stdout."""
    names = [Path(each.name).name for each in runs]
    by_label = {metric.label: metric for each in runs for metric in metrics(each.recipe)}
    rows = [
        [label, *(MISSING if value is None else by_label[label].unit.show(value) for value in own)]
        for label, own in found["metrics"].items()
    ]
    parts: list[terminal.Part] = [terminal.table(["student", *names], rows, wrap=True)]
    for title, tables in (
        ("zero-shot", [zero_shot.table_of(each.results, main_only=True) for each in runs]),
        ("bias", [bias.table_of(each.results, main_only=True) for each in runs]),
    ):
        labels = dict.fromkeys(label for own in tables if own for label, _ in own.rows)
        if labels:
            columns = [_students(own) for own in tables]
            cells = [[label, *(own.get(label, MISSING) for own in columns)] for label in labels]
            parts.append(terminal.table([title, *names], cells, wrap=True))
    for name, gap in zip(names[1:], found["differences"], strict=True):
        if gap is not None and gap["value"] is not None:
            parts.append(Text(_sentence(name, names[0], gap)))
    if found["settings"]:
        cells = [
            [key, *(MISSING if value is None else str(value) for value in values)]
            for key, values in found["settings"].items()
        ]
        parts.append(terminal.table(["setting", *names], cells, wrap=True))
    terminal.show(*parts)


def _students(table: Any) -> dict[str, str]:
    """The student's cell of each row."""
    if table is None:
        return {}
    place = table.columns.index("Student")
    return {label: cells[place].text for label, cells in table.rows}


def _sentence(name: str, first: str, gap: Mapping[str, float | None]) -> str:
    """Which student is better, or that there is no significant difference."""
    own = Difference(gap["value"], gap["low"], gap["high"])
    digits = 3 if abs(own.value or 0.0) >= SMALLEST_DIFFERENCE else 5
    size = f"{units.signed(own.value or 0.0, digits)} nats per token"
    if own.low is None or own.high is None:
        return f"{name} minus {first}: {size} (too few units for an interval)"
    verdict = own.verdict(lower_is_better=True)
    if verdict == "unclear":
        interval = f"95 % interval {own.interval(digits)}"
        ending = f"{name} minus {first} is {size}, {interval}"
        return f"{name} and {first} do not differ significantly: on the same text {ending}."
    return (
        f"{name} is {verdict} than {first}: on the same text its loss is "
        f"{'lower' if verdict == 'better' else 'higher'} by {abs(own.value or 0.0):.3f} nats per "
        f"token (95 % interval {own.size_interval()})."
    )

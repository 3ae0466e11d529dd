"""The result of a run in a terminal: a column for each model, the outcome, where the files are."""

import statistics
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from stillhouse import terminal, units
from stillhouse.evaluation.metrics.registry import metrics_of
from stillhouse.recipe import Recipe
from stillhouse.report.outcome import summarize_results
from stillhouse.report.results import (
    CONTROLS,
    SeedResult,
    loss_key,
    models_of,
    read_results,
    spread_of,
)
from stillhouse.report.tasks import COSTS, TaskResult, glue_lines, read_tasks
from stillhouse.runs.paths import RunFolder
from stillhouse.tasks.metrics import metric_label


def summary(recipe: Recipe, run: RunFolder, seed_runs: list[RunFolder]) -> str:
    """The summary as text, no wider than the terminal; several seeds by their medians."""
    results = read_results(recipe, seed_runs)
    outcome = summarize_results(recipe, results)
    parts: list[terminal.Part] = [_models(recipe, results)]
    if len(results) > 1:
        parts.append(_seeds(recipe, results))
        if set(CONTROLS) & set(models_of(results)):
            parts += [
                Text("The student's loss minus its control's, with its 95 % interval:"),
                _differences(recipe, results),
            ]
    parts += [
        Text(f"{outcome.title} {outcome.text}"),
        f"\nStudent  {seed_runs[0].student}",
        f"Report   {run.report}",
    ]
    return terminal.render(*parts)


def tasks_summary(recipe: Recipe, seed_runs: Sequence[RunFolder]) -> str:
    """The tables of all tasks and splits, each by the task's main metric."""
    tasks, parts = read_tasks(recipe, seed_runs), []
    for task in tasks:
        for split in task.splits:
            parts.append(Text(f"{task.name}, {split}: {task.label()}"))
            parts += _scores(recipe.seeds, task, split)
        if task.scores[0].get("costs"):
            parts.append(_costs(task))
        parts.append(f"Models   {seed_runs[0].finetuned(task.name)}")
    return terminal.render(*parts, *glue_lines(recipe, tasks))


def _models(recipe: Recipe, results: Sequence[SeedResult]) -> Table:
    """A row for each metric that has a short name, a column for each model: as many as four fit in
    80 columns with all their digits."""
    models, rows = models_of(results), []
    for metric in metrics_of(recipe.tokens.language_modeling):
        if metric.short:
            show = metric.unit.short or metric.unit.show
            found = [spread_of(results, model, metric.key) for model in models]
            if any(found):
                rows.append([metric.short, *(show(each.median) if each else "" for each in found)])
    return terminal.table(["", *map(_short, models)], rows)


def _seeds(recipe: Recipe, results: Sequence[SeedResult]) -> Table:
    """Each seed's losses in nats per token."""
    key, models, rows = loss_key(recipe), models_of(results), []
    for result in results:
        losses = [result.value(model, key) for model in models]
        cells = ["" if loss is None else units.short_nats(loss) for loss in losses]
        rows.append([f"seed {result.seed}", *cells])
    return terminal.table(["loss", *map(_short, models)], rows)


def _differences(recipe: Recipe, results: Sequence[SeedResult]) -> Table:
    """Each seed's student minus its controls, with the 95 % interval; negative: the teacher
    helped."""
    controls, rows = [each for each in CONTROLS if each in models_of(results)], []
    for result in results:
        found = [result.minus(control, loss_key(recipe)) for control in controls]
        cells = [
            "" if each.value is None else f"{units.signed(each.value)} ({each.interval() or '?'})"
            for each in found
        ]
        rows.append([f"seed {result.seed}", *cells])
    return terminal.table(["", *map(_short, controls)], rows)


def _short(model: str) -> str:
    return "control (time)" if model == "control_same_time" else model


def _scores(seeds: Sequence[int], task: TaskResult, split: str) -> list[Table]:
    """A row for each model and difference; of several seeds a column each, and the differences'
    intervals in a table of their own."""
    metric, rows = task.metric, task.rows(split)
    label = metric_label(metric)
    if len(seeds) == 1:
        cells = [[row.name, row.cell(metric, 0).text, row.interval(metric, 0)] for row in rows]
        return [terminal.table(["", label, "95 % interval"], cells)]
    cells = [
        [row.name, *(row.cell(metric, n).text for n in range(len(seeds))), row.median(metric).text]
        for row in rows
    ]
    tables = [terminal.table(["", *(f"seed {seed}" for seed in seeds), "median"], cells)]
    intervals = [
        [row.name, str(seed), row.cell(metric, n).text, row.interval(metric, n)]
        for row in rows
        if row.is_difference
        for n, seed in enumerate(seeds)
    ]
    if intervals:
        tables.append(terminal.table(["", "seed", label, "95 % interval"], intervals))
    return tables


def _costs(task: TaskResult) -> Table:
    """Parameters, size and speed of each model; of several seeds the medians."""
    costs = [each["costs"] for each in task.scores]
    rows = []
    for name in costs[0]:
        medians = [statistics.median(each[name][key] for each in costs) for key, *_ in COSTS]
        cells = [unit.show(value) for value, (_, unit, _) in zip(medians, COSTS, strict=True)]
        rows.append([name, *cells])
    return terminal.table(["", "parameters", "size", "forward"], rows)

"""The result of a run in a terminal: a column for each model, the outcome, where the files are."""

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table
from rich.text import Text

from stillhouse import terminal, units
from stillhouse.evaluation.metrics.registry import metrics_of
from stillhouse.recipe import Recipe
from stillhouse.report import bias, zero_shot
from stillhouse.report.outcome import summarize_results
from stillhouse.report.results import (
    CONTROLS,
    LOSS,
    SeedResult,
    models_of,
    read_results,
    spread_of,
)
from stillhouse.report.tasks import TaskResult, costs_table, glue_lines, read_tasks
from stillhouse.report.text_parts import loss_of, parts_of
from stillhouse.report.vocabulary import vocabulary_note
from stillhouse.runs.paths import RunFolder
from stillhouse.tasks.metrics import metric_label


def summary(recipe: Recipe, run: RunFolder, seed_runs: list[RunFolder]) -> str:
    """The summary as text, no wider than the terminal; several seeds by their medians."""
    results = read_results(recipe, seed_runs)
    outcome = summarize_results(recipe, results)
    parts: list[terminal.Part] = [_models(recipe, results)]
    if len(results) > 1:
        models = models_of(results)
        parts.append(_seeds("loss", results, models, _loss))
        if controls := [each for each in CONTROLS if each in models]:
            parts += [
                Text("The student's loss minus its control's, with its 95 % interval:"),
                _seeds("", results, controls, _difference),
            ]
    models = [*map(_short, models_of(results))]
    if named := parts_of(results):
        parts.append(terminal.table(["loss by part", *models], _by_part(results, named)))
    for title, last, table in (
        ("zero-shot", "difference", zero_shot.table_of(results, main_only=True)),
        ("bias", "change", bias.table_of(results, main_only=True)),
    ):
        if table is not None:
            rows = [[label, *(cell.text for cell in cells)] for label, cells in table.rows]
            parts.append(terminal.table([title, *models, last], rows, wrap=True))
    if note := vocabulary_note(results[0]):
        parts.append(Text(note))
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
        if costs := costs_table(recipe, task):
            rows = [[name, *(cell.text for cell in cells)] for name, cells in costs.rows]
            parts.append(terminal.table(["", "parameters", "size", "forward"], rows))
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


def _seeds(
    title: str,
    results: Sequence[SeedResult],
    models: Sequence[str],
    cell: Callable[[SeedResult, str], str],
) -> Table:
    """A row for each seed, a column for each model."""
    rows = [
        [f"seed {result.seed}", *(cell(result, model) for model in models)] for result in results
    ]
    return terminal.table([title, *map(_short, models)], rows)


def _by_part(results: Sequence[SeedResult], parts: Iterable[str]) -> list[list[str]]:
    """A row for each part of the text: the loss of each model."""
    rows = []
    for part in parts:
        found = [loss_of(results, model, part) for model in models_of(results)]
        rows.append([part, *(units.short_nats(each.median) if each else "" for each in found)])
    return rows


def _loss(result: SeedResult, model: str) -> str:
    """In nats per token."""
    loss = result.value(model, LOSS)
    return "" if loss is None else units.short_nats(loss)


def _difference(result: SeedResult, control: str) -> str:
    """The student minus a control, with the 95 % interval; negative: the teacher helped."""
    found = result.minus(control)
    return "" if found.value is None else f"{units.signed(found.value)} ({found.interval() or '?'})"


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

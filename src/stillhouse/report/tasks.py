"""The scores of a run's tasks in a terminal: a row for each model and for what its teacher was
worth, a column for each seed."""

import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stillhouse.errors import RunError
from stillhouse.recipe import Recipe
from stillhouse.report import units
from stillhouse.report.summary import LARGEST_WIDTH, PLAIN
from stillhouse.run_folder import RunFolder, read_manifest, verify
from stillhouse.tasks.metrics import GLUE, format_score, glue_scores, metric_label


def tasks_summary(recipe: Recipe, seed_runs: Sequence[RunFolder]) -> str:
    """The tables of all tasks and splits, each by the task's own metric."""
    page = io.StringIO()
    width = min(LARGEST_WIDTH, max(80, Console().width))
    console = Console(file=page, width=width, highlight=False)
    for task in recipe.finetuning:
        found = [read_scores(run, task) for run in seed_runs]
        for split in found[0]["splits"]:
            metric = found[0]["metric"]
            console.print(f"{task}, {split}: {metric_label(metric)}", markup=False)
            console.print(_table(recipe.seeds, metric, [each["splits"][split] for each in found]))
        console.print(f"Models   {seed_runs[0].finetuned(task)}", markup=False, soft_wrap=True)
    for line in glue_lines(recipe, seed_runs):
        console.print(line, markup=False, soft_wrap=True)
    return page.getvalue().strip("\n")


def glue_lines(recipe: Recipe, seed_runs: Sequence[RunFolder]) -> list[str]:
    """The macro scores of every model that all tasks of GLUE have, each task by its median over
    the seeds; none where a task is missing."""
    if not set(GLUE) - {"wnli"} <= set(recipe.finetuning):
        return []
    found = {
        task: [read_scores(run, task) for run in seed_runs]
        for task in GLUE
        if task in recipe.finetuning
    }
    names = [set(recipe.finetuning[task].models) for task in found]
    lines = []
    for model in sorted(set.intersection(*names)):
        scores = {task: _glue_score(model, each) for task, each in found.items()}
        macro = glue_scores(scores)
        without = f"GLUE, {model}: {100 * (macro['macro_without_wnli'] or 0):.1f} without WNLI"
        both = macro["macro"]
        lines.append(without if both is None else f"{without}, {100 * both:.1f} with it")
    return lines


def _glue_score(model: str, found: Sequence[dict[str, Any]]) -> float:
    """The task's metric, the mean of its splits (MNLI has two), the median of the seeds."""
    return statistics.median(
        statistics.fmean(
            split["models"][model][each["metric"]]["value"] for split in each["splits"].values()
        )
        for each in found
    )


def scores_file(run: RunFolder, task: str) -> Path:
    """Where the scores of a task's models are."""
    return run.finetuned(task) / "scores.json"


def read_scores(run: RunFolder, task: str) -> dict[str, Any]:
    """The scores of a task for one seed.

    Raises:
        RunError: they are not there, or damaged.
    """
    path = scores_file(run, task)
    if read_manifest(path) is None:
        raise RunError(f"{path} is not there yet: run the stage finetune first.")
    verify(path)
    return json.loads(path.read_text(encoding="utf-8"))


def _table(seeds: Sequence[int], metric: str, found: Sequence[dict[str, Any]]) -> Table:
    several = len(seeds) > 1
    columns = [f"seed {seed}" for seed in seeds] + (["median"] if several else [])
    table = Table("", *columns, **PLAIN)
    for column in table.columns[1:]:
        column.justify = "right"
    for model in found[0]["models"]:
        values = [each["models"][model][metric]["value"] for each in found]
        cells = [format_score(value) for value in values]
        table.add_row(
            model, *cells, *([format_score(statistics.median(values))] if several else [])
        )
    for pair in found[0]["gains"]:
        gains = [each["gains"][pair][metric] for each in found]
        cells = [
            f"{units.signed(gain['value'])} ({units.signed(gain['low'])} to "
            f"{units.signed(gain['high'])})"
            for gain in gains
        ]
        middle = statistics.median(gain["value"] for gain in gains)
        table.add_row(pair, *cells, *([units.signed(middle)] if several else []))
    return table

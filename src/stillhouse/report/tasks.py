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
from stillhouse.runs.manifest import read_manifest, verify
from stillhouse.runs.paths import RunFolder
from stillhouse.tasks.metrics import GLUE, format_score, glue_scores, metric_label, score_digits


def tasks_summary(recipe: Recipe, seed_runs: Sequence[RunFolder]) -> str:
    """The tables of all tasks and splits, each by the task's own metric."""
    page = io.StringIO()
    width = min(LARGEST_WIDTH, max(80, Console().width))
    console = Console(file=page, width=width, highlight=False)
    for task in recipe.finetuning:
        found = [read_scores(run, task) for run in seed_runs]
        for split in found[0]["splits"]:
            metric = found[0]["metric"]
            label = metric_label(metric, found[0].get("positive_label"))
            console.print(f"{task}, {split}: {label}", markup=False)
            for table in _tables(recipe.seeds, metric, [each["splits"][split] for each in found]):
                console.print(table)
        if found[0].get("costs"):
            console.print(_costs(found))
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


def _costs(found: Sequence[dict[str, Any]]) -> Table:
    """Parameters, size and speed of each model; over several seeds the medians."""
    table = _plain_table("", "parameters", "size", "forward")
    for model in found[0]["costs"]:
        own = [each["costs"][model] for each in found]
        speed = statistics.median(each["forward_tokens_per_second"] for each in own)
        size = units.size_bytes(own[0]["size_bytes"])
        table.add_row(
            model, units.count(own[0]["parameters"]), size, units.tokens_per_second(speed)
        )
    return table


def _tables(seeds: Sequence[int], metric: str, found: Sequence[dict[str, Any]]) -> list[Table]:
    """A row for each model and gain; of several seeds a column each, and the gains' intervals in a
    table of their own."""
    rows = {
        name: (kind, [each[kind][name][metric] for each in found])
        for kind in ("models", "gains")
        for name in found[0][kind]
    }
    digits = score_digits(
        number for _, own in rows.values() for each in own for number in each.values()
    )
    if len(seeds) == 1:
        table = _plain_table("", metric_label(metric), "95 % interval")
        for name, (kind, own) in rows.items():
            table.add_row(
                name, shown(own[0]["value"], kind, digits), _interval(own[0], kind, digits)
            )
        return [table]
    table = _plain_table("", *(f"seed {seed}" for seed in seeds), "median")
    intervals = _plain_table("", "seed", metric_label(metric), "95 % interval")
    for name, (kind, own) in rows.items():
        values = [each["value"] for each in own]
        table.add_row(
            name, *(shown(each, kind, digits) for each in (*values, statistics.median(values)))
        )
        if kind == "gains":
            for seed, each in zip(seeds, own, strict=True):
                value = shown(each["value"], kind, digits)
                intervals.add_row(name, str(seed), value, _interval(each, kind, digits))
    return [table, intervals] if intervals.row_count else [table]


def _plain_table(*columns: str) -> Table:
    table = Table(*columns, **PLAIN)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    return table


def _interval(found: dict[str, float], kind: str, digits: int) -> str:
    return f"{shown(found['low'], kind, digits)} to {shown(found['high'], kind, digits)}"


def shown(value: float, kind: str, digits: int) -> str:
    """A score, or a gain with its sign."""
    return units.signed(value, digits) if kind == "gains" else format_score(value, digits)

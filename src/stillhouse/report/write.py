"""Writes a run's report: evaluation.json, scores.json and metrics.jsonl -> report.html and the
model cards.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.models.folder_check import CARD, MEASUREMENTS
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report import bias, text_parts, zero_shot
from stillhouse.report import energy as spent
from stillhouse.report import results as read
from stillhouse.report import tasks as scored
from stillhouse.report.agreement import agreement_tables
from stillhouse.report.cards import (
    cleaning_counts,
    measurements,
    model_card,
    task_card,
    task_measurements,
)
from stillhouse.report.figures import dot_plots, training_figures
from stillhouse.report.layers import layer_charts
from stillhouse.report.outcome import summarize_results
from stillhouse.report.pareto import pareto_charts
from stillhouse.report.race import race_of
from stillhouse.report.render import command_line, model_name, render
from stillhouse.report.results import read_results
from stillhouse.report.tables import by_seed, comparison
from stillhouse.report.tasks import read_tasks, scores_file
from stillhouse.report.vocabulary import vocabulary_note
from stillhouse.runs.atomic import write_atomic
from stillhouse.runs.manifest import Inputs, commit_file, sha256_of
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part


def write_report(recipe: Recipe, run: RunFolder, seed_runs: list[RunFolder]) -> None:
    """Write `run.report`, and model cards: in every seed's student folder, and in those of its
    tasks.

    With one seed, `seed_runs` is `[run]`; with several, they are in the recipe's order.

    Raises:
        RunError: a seed was not evaluated or a task not scored, or a result is damaged.
    """
    tasks = read_tasks(recipe, seed_runs)
    results = [] if recipe.corpus is None else read_results(recipe, seed_runs)
    sources = {
        f"evaluation seed {result.seed}": sha256_of(result.run.evaluation) for result in results
    } | {
        f"{task.name} seed {seed}": sha256_of(scores_file(each, task.name))
        for task in tasks
        for seed, each in zip(recipe.seeds, seed_runs, strict=True)
    }
    page = report_page(recipe, run, results, tasks)
    settings = {"report": recipe_part(recipe.report), "energy": recipe_part(recipe.energy)}
    inputs = Inputs("report", settings, sources)
    commit_file(run.report, page.encode(), inputs)
    # A card and its numbers are not listed in the folder's manifest, so writing them leaves the
    # committed files, their hashes and the folder's fingerprint unchanged.
    for result in results:
        if result.run.student.is_dir():
            card = model_card(recipe, run, results, result)
            _write_card(result.run.student, card, measurements(recipe, results, result))
    name = model_name(recipe, run)
    for seed, each in zip(recipe.seeds, seed_runs, strict=True):
        for task in tasks:
            for model in recipe.finetuning[task.name].models:
                card = task_card(recipe, name, task, seed, each, model)
                measured = task_measurements(recipe, task, seed, each, model)
                _write_card(each.finetuned(task.name) / model, card, measured)


def _write_card(folder: Path, card: str, measured: Mapping[str, Any]) -> None:
    """Write a model card, and beside it what its numbers come from."""
    write_atomic(folder / CARD, card.encode())
    text = json.dumps(measured, indent=1, ensure_ascii=False)
    write_atomic(folder / MEASUREMENTS, f"{text}\n".encode())


def report_page(
    recipe: Recipe,
    run: RunFolder,
    results: Sequence[read.SeedResult],
    tasks: Sequence[scored.TaskResult],
) -> str:
    """The page of a distillation, of tasks, or of both.

    Args:
        results: Empty for a run that has only tasks.
    """
    evaluations = [result.evaluation for result in results] or [tasks[0].scores[0]]
    machines = [each.get("machine") or {} for each in evaluations]
    commits = sorted({str(each.get("commit") or "unknown") for each in evaluations})
    values = {
        "name": model_name(recipe, run),
        "outcome": summarize_results(recipe, results)
        if results
        else scored.outcome_of(recipe, tasks),
        "recipe": recipe,
        "several": len(recipe.seeds) > 1,
        "seeds": read.seeds_of(recipe.seeds),
        "tasks": tasks,
        "scored": scored,
        "command": command_line(str(run.recipe), str(run.shared)),
        "facts": {"seed": ", ".join(map(str, recipe.seeds)), "commit": ", ".join(commits)},
        "machines": [each for n, each in enumerate(machines) if each not in machines[:n]],
        "first": evaluations[0],
        "recipe_yaml": dump_recipe(recipe),
    }
    if not results:
        return render("tasks.html", notes=scored.glue_lines(recipe, tasks), **values)
    models = read.models_of(results)
    return render(
        "distillation.html",
        results=results,
        models=models,
        has_control=bool(set(read.CONTROLS) & set(models)),
        scored_text=read.scored_text(recipe),
        resampled=read.resampled(results),
        metric=read.main_metric(recipe),
        plots=dot_plots(recipe, results),
        layers=layer_charts(results[0]),
        race=race_of(results[0]),
        cleaning=cleaning_counts(run),
        vocabulary=vocabulary_note(results[0]),
        comparison=comparison(recipe, results),
        by_seed=by_seed(results),
        **_measured(recipe, results),
        **bias.values_of(results),
        **spent.values_of(recipe, results[0]),
        skipped=[(result, *each) for result in results for each in _skipped_steps(result)],
        figures=training_figures(recipe, results),
        folders={
            read.label_of(model): entry.get("path")
            for model, entry in evaluations[0]["models"].items()
        },
        has_metrics=any(result.metrics for result in results),
        **values,
    )


def _measured(recipe: Recipe, results: Sequence[read.SeedResult]) -> dict[str, object]:
    """Pictures and tables of what the evaluation has measured besides the comparison."""
    return {
        "pareto": pareto_charts(recipe, results),
        "parts": text_parts.table_of(results),
        "agreement": agreement_tables(results),
        "zero_shot": zero_shot.table_of(results),
    }


def _skipped_steps(result: read.SeedResult) -> list[tuple[str, int]]:
    """The models of a seed with updates that were skipped because the loss was not finite."""
    most: dict[str, int] = {}
    for line in result.metrics:
        model = line["model"]
        most[model] = max(most.get(model, 0), int(line.get("skipped_steps") or 0))
    return [(model, number) for model, number in most.items() if number]

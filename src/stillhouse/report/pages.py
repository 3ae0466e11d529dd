"""The report page of a run."""

import shlex
from collections.abc import Sequence

from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report import results as read
from stillhouse.report import tasks as scored
from stillhouse.report.curves import training_figures
from stillhouse.report.dot_plot import dot_plots
from stillhouse.report.outcome import summarize_results
from stillhouse.report.render import render
from stillhouse.report.tables import by_seed, comparison
from stillhouse.report.verdict import Outcome
from stillhouse.runs.paths import RunFolder


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
    outcome = _outcome(recipe, results, tasks)
    evaluations = [result.evaluation for result in results] or [tasks[0].scores[0]]
    machines = [each.get("machine") or {} for each in evaluations]
    commits = sorted({str(each.get("commit") or "unknown") for each in evaluations})
    values = {
        "name": model_name(recipe, run),
        "outcome": outcome,
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
        comparison=comparison(recipe, results),
        by_seed=by_seed(recipe, results),
        skipped=[(result, *each) for result in results for each in _skipped_steps(result)],
        figures=training_figures(recipe, results),
        folders={
            read.label_of(model): entry.get("path")
            for model, entry in evaluations[0]["models"].items()
        },
        has_metrics=any(result.metrics for result in results),
        **values,
    )


def _outcome(
    recipe: Recipe, results: Sequence[read.SeedResult], tasks: Sequence[scored.TaskResult]
) -> Outcome:
    return summarize_results(recipe, results) if results else scored.outcome_of(recipe, tasks)


def _skipped_steps(result: read.SeedResult) -> list[tuple[str, int]]:
    """The models of a seed with updates that were skipped because the loss was not finite."""
    most: dict[str, int] = {}
    for line in result.metrics:
        model = line["model"]
        most[model] = max(most.get(model, 0), int(line.get("skipped_steps") or 0))
    return [(model, number) for model, number in most.items() if number]


def model_name(recipe: Recipe, run: RunFolder) -> str:
    """The name in the recipe, or the run folder's."""
    return recipe.report.model_name or run.shared.resolve().name


def command_line(recipe_file: str, run_dir: str) -> str:
    """The command that reproduces this run."""
    return f"stillhouse run {shlex.quote(recipe_file)} --run-dir {shlex.quote(run_dir)}"

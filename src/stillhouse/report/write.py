"""Writes a run's report: evaluation.json, scores.json and metrics.jsonl -> report.html and the
model cards."""

from stillhouse.recipe import Recipe
from stillhouse.report.card import model_card
from stillhouse.report.page import command_line, model_name, report_page
from stillhouse.report.results import read_results
from stillhouse.report.task_card import task_card
from stillhouse.report.task_page import read_tasks, tasks_page
from stillhouse.report.tasks import glue_lines, scores_file
from stillhouse.runs.atomic import write_atomic
from stillhouse.runs.manifest import Inputs, commit_file, sha256_of
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part


def write_report(recipe: Recipe, run: RunFolder, seed_runs: list[RunFolder]) -> None:
    """Write `run.report`, and model cards: in every seed's student folder, and in those of its
    tasks.

    With one seed, `seed_runs` is `[run]`; with several, they are in the recipe's order.

    Raises:
        RunError: a seed has not been evaluated or a task not scored, or what was is damaged.
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
    if results:
        page = report_page(recipe, run, results, tasks)
    else:
        command = command_line(str(run.recipe), str(run.shared))
        page = tasks_page(
            model_name(recipe, run), recipe, command, tasks, glue_lines(recipe, seed_runs)
        )
    inputs = Inputs("report", {"report": recipe_part(recipe.report)}, sources)
    commit_file(run.report, page.encode(), inputs)
    # A card is not listed in its folder's manifest, so writing it leaves the committed files, their
    # hashes and the folder's fingerprint as they were.
    for result in results:
        if result.run.student.is_dir():
            card = model_card(recipe, run, results, result)
            write_atomic(result.run.student / "README.md", card.encode())
    name = model_name(recipe, run)
    for seed, each in zip(recipe.seeds, seed_runs, strict=True):
        for task in tasks:
            for model in recipe.finetuning[task.name].models:
                card = task_card(recipe, name, task, seed, each, model)
                write_atomic(each.finetuned(task.name) / model / "README.md", card.encode())

"""Writes a run's report: evaluation.json, scores.json and metrics.jsonl -> report.html and the
model cards."""

from stillhouse.recipe import Recipe
from stillhouse.report.cards import model_card, task_card
from stillhouse.report.pages import model_name, report_page
from stillhouse.report.results import read_results
from stillhouse.report.tasks import read_tasks, scores_file
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
    inputs = Inputs("report", {"report": recipe_part(recipe.report)}, sources)
    commit_file(run.report, page.encode(), inputs)
    # A card is not listed in its folder's manifest, so writing it leaves the committed files, their
    # hashes and the folder's fingerprint unchanged.
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

"""Writes a run's report: evaluation.json + metrics.jsonl -> report.html and the model cards."""

from stillhouse.recipe import Recipe, recipe_part
from stillhouse.report.card import model_card
from stillhouse.report.page import report_page
from stillhouse.report.results import read_results
from stillhouse.run_folder import Inputs, RunFolder, commit_file, sha256_of, write_atomic


def write_report(recipe: Recipe, run: RunFolder, seed_runs: list[RunFolder]) -> None:
    """Write `run.report`, and the model card into every seed's student folder.

    With one seed, `seed_runs` is `[run]`; with several, they are in the recipe's order.

    Raises:
        RunError: a seed has not been evaluated, or its `evaluation.json` is damaged.
    """
    results = read_results(recipe, seed_runs)
    inputs = Inputs(
        stage="report",
        settings={"report": recipe_part(recipe.report)},
        sources={
            f"evaluation seed {result.seed}": sha256_of(result.run.evaluation) for result in results
        },
    )
    commit_file(run.report, report_page(recipe, run, results).encode(), inputs)
    for result in results:
        if result.run.student.is_dir():
            # The card is not listed in the folder's manifest, so writing it leaves the committed
            # files, their hashes and the folder's fingerprint as they were.
            card = model_card(recipe, run, results, result)
            write_atomic(result.run.student / "README.md", card.encode())

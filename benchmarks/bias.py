"""Bias of a teacher and its student on CrowS-Pairs, StereoSet, WinoBias, Winogender and templates,
and on BOLD.

    python -m benchmarks.bias NAME TEACHER STUDENT [CONTROL] [--output FILE] [--data ../shared/data]

Scores all models on the same sentences, with the paired differences, in float32, and writes a JSON
file to benchmarks/results/bias; `make docs` makes the table of docs/guides/bias.md.
"""

import argparse
import sys
from functools import cache, partial
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks import measure
from stillhouse.errors import StillhouseError
from stillhouse.evaluation.bias import bias_scores
from stillhouse.evaluation.data_sets import ScoredModel
from stillhouse.evaluation.metrics.base import Cache
from stillhouse.evaluation.settings import BiasRecipe
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import count_parameters, load_model
from stillhouse.runs.paths import RunFolder
from stillhouse.training.device import pick_device
from stillhouse.training.progress import ConsoleReporter

RESULTS = Path(__file__).parent / "results" / "bias"
FILES = {
    "crows_pairs": ("crows_pairs", "crows_pairs/crows_pairs_anonymized.csv"),
    "stereoset": ("stereoset", "stereoset/dev.json"),
    "winobias_type1": ("winobias", "winobias/pro_stereotyped_type1.txt.test"),
    "winobias_type2": ("winobias", "winobias/pro_stereotyped_type2.txt.test"),
    "winogender": ("winogender", "winogender/all_sentences.tsv"),
}
BOLD = "bold/prompts/gender_prompt.json"


def load(folder: Path) -> PreTrainedModel:
    _, model = load_model(folder)
    model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    return model


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bias",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="of the file of results")
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("control", nargs="?")
    parser.add_argument("--title", help="the student's row in the table; by default NAME")
    parser.add_argument("--rows", type=int, help="of each set, the first ones; by default all")
    parser.add_argument(
        "--bold", type=int, default=0, help="of BOLD's gender prompts, the first ones of each group"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, help="by default a file in benchmarks/results/bias")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("teacher", "student", "control")}
    sets = {
        name: BiasRecipe.model_validate(
            {
                "task": task,
                "data": str(options.data / "bias" / file),
                "num_examples": options.rows,
            }
        )
        for name, (task, file) in FILES.items()
    }
    sets["templates"] = BiasRecipe.model_validate({"task": "templates"})
    if options.bold:  # generated text: minutes
        sets["bold_gender"] = BiasRecipe.model_validate(
            {
                "task": "bold",
                "data": str(options.data / "bias" / BOLD),
                "num_examples": options.bold,
            }
        )
    try:
        folders = {
            name: resolve_folder(own, offline=True)
            for name, own in given.items()
            if own is not None
        }
        models = {
            name: ScoredModel(folder, cache(partial(load, folder)), folder)
            for name, folder in folders.items()
        }
        run = RunFolder.at(Path("runs/bias"))
        scores = bias_scores(sets, run, models, Cache(), ConsoleReporter())
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    found = {
        "command": " ".join(["python -m benchmarks.bias", *sys.argv[1:]]),
        **measure.environment(),
        "title": options.title or options.name,
        "parameters": {name: count_parameters(own.model()) for name, own in models.items()},
        "bias": scores,
    }
    output = options.output or RESULTS / f"{options.name}.json"
    measure.write_result(output, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Throughput of models of one task on the same examples, alternating, relative to the first model.

    python -m benchmarks.task_speed --task sts --data data/STS-B/sts-dev.tsv minilm STUDENT

Each pass does what `stillhouse score` does after reading: examples tokenized beforehand, batches of
about equal length, float32 on the CPU. Writes a table, and with --output every raw number.
"""

import argparse
import functools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from stillhouse.errors import StillhouseError
from stillhouse.inference.load import load_for_task
from stillhouse.models.hub import resolve_folder
from stillhouse.recipe_file import parse_task
from stillhouse.runs.manifest import sha256_of
from stillhouse.tasks.settings import TaskRecipe
from stillhouse.tasks.task import predict
from stillhouse.training.device import pick_device


def prepare(name: str, recipe: TaskRecipe, data: Path, device: torch.device) -> tuple[Any, int]:
    """One pass over the data, and the model's parameters."""
    loaded = load_for_task(resolve_folder(name, offline=True), recipe, device)
    examples = loaded.task.read(data)
    encoded = loaded.task.encode(examples, loaded.tokenizer)
    answer = functools.partial(predict, loaded.task, loaded.model, examples, encoded)
    return answer, loaded.model.num_parameters()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.task_speed", description=__doc__)
    parser.add_argument("models", nargs="+", help="folders or names; the first is the reference")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    options = parser.parse_args()
    recipe, device = parse_task(options.task, options.overrides), pick_device()
    found = {name: prepare(name, recipe, options.data, device) for name in options.models}
    passes = {name: answer for name, (answer, _) in found.items()}
    seconds = measure.interleaved_seconds(passes, repeats=options.repeats, device=device)
    reference = seconds[options.models[0]]
    table = Table("model", "parameters", "seconds", "speedup")
    rows = {}
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(reference, own, strict=True))
        median = statistics.median(own)
        rows[name] = {"parameters": found[name][1], "seconds": own, "times_as_fast": ratio}
        table.add_row(name, f"{found[name][1] / 1e6:.1f} M", f"{median:.2f}", f"{ratio:.2f}")
    Console().print(table)
    if options.output is not None:
        content = {
            "command": " ".join(["python -m benchmarks.task_speed", *sys.argv[1:]]),
            **measure.environment(),
            "data_sha256": sha256_of(options.data),
            "models": rows,
        }
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except StillhouseError as error:
        sys.exit(str(error))

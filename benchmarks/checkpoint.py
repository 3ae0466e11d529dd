"""How long saving a checkpoint of DistilGPT2 blocks training, and when it is committed.

    python -m benchmarks.checkpoint --output checkpoint.json

Random weights and an optimizer after one step: 82 M parameters, 983 MB per checkpoint. Each save
goes through `stillhouse.training.checkpoint`; training is blocked until `save` returns, and the
commit is complete when every byte is written, hashed, flushed and renamed. Saving in the background
spares the difference. Writes into a temporary folder under --folder; prints a table.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import measure
from stillhouse.runs.manifest import Inputs
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.progress import Progress
from stillhouse.training.settings import CheckpointRecipe, OptimizerRecipe
from stillhouse.training.step import make_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    options = parser.parse_args()
    model = GPT2LMHeadModel(GPT2Config(n_layer=6))
    optimizer = make_optimizer(model, OptimizerRecipe())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    waits, commits = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        place = Path(folder) / "checkpoints"
        checkpoints = Checkpoints(place, Inputs("bench", {}, {}), CheckpointRecipe(), print)
        for number in range(1, options.repeats + 1):
            started = time.monotonic()
            checkpoints.save(model, optimizer, Progress(number))
            waits.append(time.monotonic() - started)
            checkpoints.finish()
            commits.append(time.monotonic() - started)
        newest = checkpoints.committed()[-1]
        size = sum(path.stat().st_size for path in newest.iterdir())
    print(
        f"{size / 1e6:,.0f} MB; training waits {statistics.median(waits):.2f} s "
        f"({min(waits):.2f} to {max(waits):.2f}); committed after "
        f"{statistics.median(commits):.2f} s ({min(commits):.2f} to {max(commits):.2f})"
    )
    if options.output:
        facts = {"command": " ".join(["python -m benchmarks.checkpoint", *sys.argv[1:]])}
        facts |= {"size_bytes": size, "wait_seconds": waits, "commit_seconds": commits}
        options.output.write_text(json.dumps(facts | measure.environment(), indent=1) + "\n")


if __name__ == "__main__":
    main()

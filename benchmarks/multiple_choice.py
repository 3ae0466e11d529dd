"""Multiple choice: examples per second of `stillhouse score` and of lm-eval, in turn.

    python -m benchmarks.multiple_choice MODEL TASK DATA [--rows 60] [--turns 3]

Both score the same contexts and choices with the same model in memory, tokenizing included; lm-eval
in batches of 8, sorted by length, as `stillhouse score --lm-eval` runs it. Prints each turn, the
median ratio, and the largest relative difference of a log-likelihood.
"""

import argparse
import importlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from stillhouse.evaluation.score import BATCH
from stillhouse.inference.load import load_for_task
from stillhouse.models.hub import resolve_folder
from stillhouse.recipe_file import parse_task


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("task")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    folder = resolve_folder(given.model, offline=True)
    loaded = load_for_task(folder, parse_task(given.task))
    examples = loaded.task.read(given.data)[: given.rows]
    harness = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        backend="causal",
        batch_size=BATCH["cpu"],
        max_length=loaded.context,
    )
    request = importlib.import_module("lm_eval.api.instance").Instance
    requests = [
        request("loglikelihood", doc={}, arguments=pair, idx=0)
        for each in examples
        for pair in zip(each.contexts, each.continuations, strict=True)
    ]
    ratios, ours, theirs = [], [], []
    for _ in range(given.turns):
        own_seconds, ours = timed(lambda: loaded.predictions(examples))
        seconds, theirs = timed(lambda: harness.loglikelihood(requests, disable_tqdm=True))
        ratios.append(seconds / own_seconds)
        rates = len(examples) / own_seconds, len(examples) / seconds
        print(f"{rates[0]:.2f} and {rates[1]:.2f} examples/s, ratio {ratios[-1]:.2f}", flush=True)
    pairs = zip(itertools.chain.from_iterable(ours), theirs, strict=True)
    error = max(abs(own - other) / abs(other) for own, (other, _) in pairs)
    print(f"median ratio {median(ratios):.2f}, largest relative difference {error:.1e}")


if __name__ == "__main__":
    main()

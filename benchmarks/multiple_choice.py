"""Multiple choice: examples per second of `stillhouse score` and of lm-eval, in turn.

    python -m benchmarks.multiple_choice MODEL TASK DATA [--rows 60] [--turns 3] [--precisions fp32]

Both score the same contexts and choices with the same weights in memory, tokenizing included.
In each precision lm-eval is timed with several batch sizes, then in turns with ours at the fastest.
Prints each turn, the median ratio, and the largest relative difference of a log-likelihood.
"""

import argparse
import importlib
import itertools
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from stillhouse.inference.load import load_for_task
from stillhouse.inference.quantization import times_of, to_precision
from stillhouse.inference.task_model import TaskModel, task_model
from stillhouse.models.hub import resolve_folder
from stillhouse.recipe_file import parse_task

BATCH_SIZES = (1, 8, 32)
TRIED = 16  # questions on which lm-eval's batch sizes are compared

Score = Callable[[Sequence[Any]], list[Any]]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def at_precision(loaded: TaskModel, precision: Any) -> TaskModel:
    """A copy of the model in another precision."""
    model = deepcopy(loaded.model)
    to_precision(model, precision, times=times_of(model))
    return task_model(model, loaded.tokenizer, loaded.task)


def harness(loaded: TaskModel, batch_size: int) -> Score:
    """lm-eval's log-likelihoods of questions."""
    model = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=loaded.context,
    )
    request = importlib.import_module("lm_eval.api.instance").Instance

    def score(examples: Sequence[Any]) -> list[Any]:
        requests = [
            request("loglikelihood", doc={}, arguments=pair, idx=0)
            for each in examples
            for pair in zip(each.contexts, each.continuations, strict=True)
        ]
        return model.loglikelihood(requests, disable_tqdm=True)

    return score


def compare(ours: TaskModel, theirs: Score, examples: Sequence[Any], turns: int) -> None:
    """Time both in turns."""
    ratios, found, expected = [], [], []
    for _ in range(turns):
        own_seconds, found = timed(partial(ours.predictions, examples))
        seconds, expected = timed(partial(theirs, examples))
        ratios.append(seconds / own_seconds)
        rates = len(examples) / own_seconds, len(examples) / seconds
        print(f"  {rates[0]:.2f} and {rates[1]:.2f} examples/s, ratio {ratios[-1]:.2f}", flush=True)
    pairs = zip(itertools.chain.from_iterable(found), expected, strict=True)
    error = max(abs(own - other) / abs(other) for own, (other, _) in pairs)
    print(f"  median ratio {median(ratios):.2f}, largest relative difference {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("task")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    given = parser.parse_args()
    folder = resolve_folder(given.model, offline=True)
    loaded = load_for_task(folder, parse_task(given.task))
    examples = loaded.task.read(given.data)[: given.rows]
    models = {each: at_precision(loaded, each) for each in given.precisions}
    few = examples[:TRIED]
    for precision, model in models.items():
        scores = {size: harness(model, size) for size in BATCH_SIZES}
        model.predictions(few)
        times = {size: timed(partial(score, few))[0] for size, score in scores.items()}
        best = min(times, key=lambda size: times[size])
        tried = ", ".join(f"{size}: {TRIED / own:.2f}/s" for size, own in times.items())
        print(f"{precision}: lm-eval by batch size: {tried}")
        compare(model, scores[best], examples, given.turns)


if __name__ == "__main__":
    main()

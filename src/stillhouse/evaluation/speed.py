"""Speed and memory: interleaved timing of several models, and peak memory in fresh processes.

Forward: a batch of 8 sequences of up to 256 tokens, with the head. Generation: one sequence,
greedy, 64 new tokens after 16, key/value cache on. Models take turns (A B C A B C ...), at least
five after one to warm up, and more while they vary; the median counts. Beside each rate stands the
95 % interval of its ratio to the first model's, from the ratios within each turn: a wide one says
that the machine was busy. Models with the same configuration are measured once."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from stillhouse.evaluation.progress import Progress
from stillhouse.families.base import Family
from stillhouse.inference.reference import (
    TURNS,
    forward_pass,
    greedy_tokens,
    ratio_to_first,
    shape_key,
    timed_turns,
)
from stillhouse.training.progress import Reporter

LENGTH = 256
PROMPT, NEW_TOKENS = 16, 64
NOISY = 1.25

MEMORY_PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from stillhouse.evaluation.speed import run_forward
from stillhouse.models.load import load_model
from stillhouse.training.device import pick_device
family, model = load_model(Path(sys.argv[1]))
device = pick_device()
run_forward(family, model.to(device))
on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(torch.cuda.max_memory_allocated() if device.type == "cuda" else on_host)
"""


def run_forward(family: Family, model: PreTrainedModel) -> int:
    """One forward pass over a batch of random tokens; returns the number of tokens."""
    return forward_pass(model, model, min(LENGTH, family.num_positions(model.config)))


def run_generation(family: Family, model: PreTrainedModel) -> int:
    """Greedy continuation of one random prompt; returns the number of new tokens."""
    positions = family.num_positions(model.config)
    prompt = min(PROMPT, positions // 2)
    new_tokens = min(NEW_TOKENS, positions - prompt)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (prompt,), generator=generator).tolist()
    return len(greedy_tokens(model, ids, new_tokens))


def measure_speed(
    models: Mapping[str, tuple[Family, PreTrainedModel]],
    reporter: Reporter | None = None,
) -> dict[str, dict[str, Any]]:
    """Tokens per second of each model, forward and generating (None for masked models), and under
    `ratio_to_first` the interval of each ratio to the first model's rate."""
    causal = {name: pair for name, pair in models.items() if pair[0].language_modeling == "causal"}
    forward = _timed("forward passes", run_forward, models, reporter)
    generating = _timed("generation", run_generation, causal, reporter)
    return {
        name: {
            "forward_tokens_per_second": median(forward[name]),
            "generate_tokens_per_second": median(generating[name]) if name in generating else None,
            "ratio_to_first": {
                "forward": ratio_to_first(forward, name),
                "generate": ratio_to_first(generating, name),
            },
        }
        for name in models
    }


def is_noisy(interval: Sequence[float] | None) -> bool:
    """Whether a ratio's interval is so wide that the ratio should not be told alone."""
    return interval is not None and interval[1] > NOISY * interval[0]


def _timed(
    what: str,
    work: Callable[[Family, PreTrainedModel], int],
    models: Mapping[str, tuple[Family, PreTrainedModel]],
    reporter: Reporter | None,
) -> dict[str, list[float]]:
    works = {name: partial(work, *pair) for name, pair in models.items()}
    if not works:
        return {}
    with Progress(reporter, f"speed, {what}", (TURNS + 1) * len(works)) as progress:
        return timed_turns(works, progress.add)


def peak_memory_bytes(folder: Path) -> int | None:
    """Peak memory of a fresh process that loads the model and runs one forward pass.

    Resident memory of the process; on a GPU, what was allocated there.
    """
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    return json.loads(result.stdout) if result.returncode == 0 else None


__all__ = ["is_noisy", "measure_speed", "peak_memory_bytes", "run_forward", "shape_key"]

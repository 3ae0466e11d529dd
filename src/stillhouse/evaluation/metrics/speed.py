"""Speed: interleaved timing of several models.

Forward: a batch of 8 sequences of up to 256 tokens, with the head. Generation: one sequence,
greedy, 64 new tokens after 16, key/value cache on. Models take turns (A B C A B C ...), at least
five after a warm-up, and more while the ratios vary; the median is reported, with the 95 % interval
of its ratio to the first model's, from the ratios within each turn. A wide interval means that the
machine was busy. Models with the same configuration are timed once.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from stillhouse import units
from stillhouse.evaluation.metrics.base import Metric, Model, Subjects, progress
from stillhouse.families.base import Family
from stillhouse.inference.reference import (
    TURNS,
    forward_pass,
    greedy_tokens,
    ratio_to_first,
    timed_turns,
)
from stillhouse.training.progress import QuietReporter, Reporter

LENGTH = 256
PROMPT, NEW_TOKENS = 16, 64
QUIET = QuietReporter()
NOISY = 1.25  # ends of a ratio's interval further apart than this factor are reported as noisy
NOT_TIMED = {"forward_tokens_per_second": None, "generate_tokens_per_second": None}


def run_forward(family: Family, model: PreTrainedModel) -> int:
    """One forward pass over a batch of random tokens; returns the number of tokens."""
    return forward_pass(model, model, min(LENGTH, family.num_positions(model.config)))


def run_generation(family: Family, model: PreTrainedModel) -> int:
    """Greedy generation after one random prompt; returns the number of new tokens."""
    positions = family.num_positions(model.config)
    prompt = min(PROMPT, positions // 2)
    new_tokens = min(NEW_TOKENS, positions - prompt)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (prompt,), generator=generator).tolist()
    return len(greedy_tokens(model, ids, new_tokens))


def measure(subjects: Subjects) -> dict[str, dict[str, Any]]:
    """The speed of each distinct configuration, in turns."""
    timed: dict[str, Model] = {}
    for name, configuration in subjects.configurations.items():
        timed.setdefault(configuration, subjects.models[name])
    speeds = measure_speed(timed, subjects.reporter) if subjects.speed else {}
    return {
        name: {"speed": speeds.get(configuration, NOT_TIMED)}
        for name, configuration in subjects.configurations.items()
    }


def measure_speed(
    models: Mapping[str, Model], reporter: Reporter = QUIET
) -> dict[str, dict[str, Any]]:
    """Tokens per second of each model, forward and in generation (None for masked models), and
    under `ratio_to_first` the interval of each ratio to the first model's rate."""
    causal = {name: pair for name, pair in models.items() if pair[0].language_modeling == "causal"}
    forward = _timed("forward passes", run_forward, models, reporter)
    generation = _timed("generation", run_generation, causal, reporter)
    return {
        name: {
            "forward_tokens_per_second": median(forward[name]),
            "generate_tokens_per_second": median(generation[name]) if name in generation else None,
            "ratio_to_first": {
                "forward": ratio_to_first(forward, name),
                "generate": ratio_to_first(generation, name),
            },
        }
        for name in models
    }


def is_noisy(interval: Sequence[float] | None) -> bool:
    """Whether a ratio must be reported with its interval, because that is wide."""
    return interval is not None and interval[1] > NOISY * interval[0]


def _timed(
    what: str,
    work: Callable[[Family, PreTrainedModel], int],
    models: Mapping[str, Model],
    reporter: Reporter,
) -> dict[str, list[float]]:
    works = {name: partial(work, *pair) for name, pair in models.items()}
    if not works:
        return {}
    with progress(reporter, f"speed, {what}", (TURNS + 1) * len(works)) as tick:
        return timed_turns(works, tick)


METRICS = [
    Metric(
        "speed",
        "speed.forward_tokens_per_second",
        "Forward throughput",
        units.RATE,
        measure,
        lower_is_better=False,
        short="forward",
        compared=True,
        interval="speed.ratio_to_first.forward",
    ),
    Metric(
        "speed",
        "speed.generate_tokens_per_second",
        "Generation throughput",
        units.RATE,
        measure,
        lower_is_better=False,
        language_modeling="causal",
        short="generation",
        compared=True,
        interval="speed.ratio_to_first.generate",
    ),
]

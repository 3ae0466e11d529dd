"""A model run by transformers, as the reference for other engines; and interleaved timing."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from math import comb
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stillhouse.models.special_ids import without_generation_defaults

BATCH = 8  # sequences of a timed forward pass
TURNS = 5  # at least
MOST_TURNS = 15
MOST_SECONDS = 20.0  # for the turns after the first five
SHORTEST_TURN = 0.02  # seconds; shorter work is repeated within a turn
STEADY = 1.1  # stop once every ratio to the first is known within this factor
CONFIDENCE = 0.95


@torch.inference_mode()
def greedy_tokens(model: PreTrainedModel, ids: Sequence[int], number: int) -> list[int]:
    """Greedy next tokens, without stopping at the end of the text."""
    inputs = torch.tensor([list(ids)], device=model.device)
    with without_generation_defaults(model):
        output = model.generate(  # pyright: ignore[reportCallIssue]
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=number,
            min_new_tokens=number,
            do_sample=False,
        )
    return output[0, len(ids) :].tolist()


@torch.inference_mode()
def forward_pass(model: PreTrainedModel, part: torch.nn.Module, length: int) -> int:
    """One forward pass of a model, or of a `part` such as its body, over 8 sequences of random
    tokens; returns the number of tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (BATCH, length), generator=generator)
    part(input_ids=ids.to(model.device))
    return BATCH * length


def shape_key(folder: Path) -> str:
    """A key that is equal for models of equal configuration, hence of equal speed and memory."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return json.dumps(
        {key: value for key, value in config.items() if not key.startswith("_")}, sort_keys=True
    )


def interleaved_rates(works: Mapping[str, Callable[[], int]]) -> dict[str, float]:
    """Median rates of `timed_turns`."""
    return {name: statistics.median(rates) for name, rates in timed_turns(works).items()}


def timed_turns(
    works: Mapping[str, Callable[[], int]],
    tick: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """The rates of each function by turn, in units of its return value per second.

    The functions take turns (A B C A B C ...) after a warm-up: five turns, and more while the
    ratios to the first one still vary, up to 15 turns or 20 seconds. Work shorter than 20 ms is
    repeated within its turn.

    Args:
        tick: Called after each function of each turn, including the warm-up.
    """
    rates: dict[str, list[float]] = {name: [] for name in works}
    repeats = dict.fromkeys(works, 1)
    started, turn = 0.0, 0
    while turn <= TURNS or (
        turn <= MOST_TURNS
        and time.perf_counter() - started < MOST_SECONDS
        and not _is_steady(rates)
    ):
        for name, work in works.items():
            began = time.perf_counter()
            count = sum(work() for _ in range(repeats[name]))
            seconds = time.perf_counter() - began
            tick()
            if turn:
                rates[name].append(count / seconds)
            else:
                repeats[name] = max(1, round(SHORTEST_TURN / seconds))
        turn += 1
        if turn == TURNS + 1:
            started = time.perf_counter()
    return rates


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median from order statistics, for any distribution.

    The k-th smallest and largest value enclose the median with probability
    1 - 2 P(Bin(n, 1/2) < k). (Five values reach at most 94 %.) Source: Conover 1999, section 3.2.
    """
    ordered, size = sorted(values), len(values)
    below, place = 1, 0  # outcomes of 2^n with fewer than place + 1 values on one side
    while 2 * (below + comb(size, place + 1)) <= (1 - CONFIDENCE) * 2**size:
        place += 1
        below += comb(size, place)
    return ordered[place], ordered[-1 - place]


def paired_ratio_interval(rates: Sequence[float], to: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the ratio of two rates in the same turn."""
    return median_interval([own / other for own, other in zip(rates, to, strict=True)])


def ratio_to_first(rates: Mapping[str, list[float]], name: str) -> list[float] | None:
    """The interval of the ratio to the first function, extended if necessary to include the ratio
    of the medians, which is the reported one; None if it was not timed."""
    if name not in rates:
        return None
    first = next(iter(rates.values()))
    low, high = paired_ratio_interval(rates[name], first)
    ratio = statistics.median(rates[name]) / statistics.median(first)
    return [min(low, ratio), max(high, ratio)]


def _is_steady(rates: Mapping[str, Sequence[float]]) -> bool:
    first, *others = rates.values()
    intervals = [paired_ratio_interval(each, first) for each in others]
    return all(high <= STEADY * low for low, high in intervals)

"""What transformers itself makes of a model: what other engines are held against, and timed with.

Axes: T tokens.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from stillhouse.families import without_generation_defaults

TURNS = 5


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, ids: Sequence[int]) -> list[float]:
    """Of each token but the first, given those before it; in nats (T - 1 of them)."""
    inputs = torch.tensor([list(ids)], device=model.device)
    found = model(input_ids=inputs).logits[0, :-1].float().log_softmax(-1)
    return found.gather(1, inputs[0, 1:, None])[:, 0].tolist()


@torch.inference_mode()
def greedy_tokens(model: PreTrainedModel, ids: Sequence[int], number: int) -> list[int]:
    """The likeliest next tokens, one after the other, whether the text has ended or not."""
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


def interleaved_rates(works: Mapping[str, Callable[[], int]]) -> dict[str, float]:
    """How much a second each does of what it counts. They take turns (A B C A B C ...); the median
    of five turns after one to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(TURNS + 1):
        for name, work in works.items():
            started = time.perf_counter()
            count = work()
            if turn:
                rates[name].append(count / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}

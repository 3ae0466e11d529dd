"""A model's answers to the examples of a task: in batches of about equal length, in order."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.models.special_ids import padding_id
from stillhouse.tasks.encoded import EncodedExample, collate
from stillhouse.tasks.task import Task

TOKENS_AT_ONCE = {"cpu": 4_096, "cuda": 65_536}


def predict(
    task: Task,
    model: PreTrainedModel,
    examples: Sequence[Any],
    encoded: Sequence[Sequence[EncodedExample]],
) -> list[Any]:
    """The model's prediction for each example, in order, computed where the model is.

    Args:
        encoded: What `task.encode` makes of the examples.
    """
    flat = [sequence for sequences in encoded for sequence in sequences]
    outputs: list[Tensor] = [torch.empty(0)] * len(flat)
    for places in batches_by_length(flat, TOKENS_AT_ONCE[model.device.type]):
        found = _outputs(task, model, [flat[place] for place in places])
        for place, output in zip(places, found, strict=True):
            outputs[place] = output
    own = iter(outputs)
    return [
        task.predict(example, sequences, [next(own) for _ in sequences])
        for example, sequences in zip(examples, encoded, strict=True)
    ]


def batches_by_length(sequences: Sequence[EncodedExample], tokens: int) -> Iterator[list[int]]:
    """The places of sequences of about the same length, the longest first, so that a batch has at
    most `tokens` tokens with its padding, or one sequence."""
    order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place].input_ids))
    first = 0
    while first < len(order):
        size = max(1, tokens // len(sequences[order[first]].input_ids))
        yield order[first : first + size]
        first += size


@torch.inference_mode()
def _outputs(task: Task, model: PreTrainedModel, sequences: Sequence[EncodedExample]) -> Tensor:
    batch = collate(sequences, pad_token_id=padding_id(model.config), per_token=task.per_token)
    return task.outputs(model, batch.to(model.device)).float().cpu()

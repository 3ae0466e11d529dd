"""Perplexity of a causal model, and the masked loss of a masked one; every token is scored.

Causal protocol: each document is cut into blocks of one token less than the model's context; a
block begins with end-of-text, which is not scored itself. `token_s512` slides instead: each window
scores the last `stride` tokens after all the context that fits before them, with stride = min(512,
context / 2). Word perplexity and bits per byte divide the same sum by words (split at white space
before tokenizing) and UTF-8 bytes, so models with different tokenizers can be compared.

Masked protocol: the packed validation sequences under one fixed mask, the same for every model with
the same tokenizer; the mean over the predicted tokens.

Axes: B sequences, T positions, R rows, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from stillhouse.errors import DataError
from stillhouse.families import Family
from stillhouse.tokens.batches import IGNORED, Batch, SequenceSource
from stillhouse.tokens.packing import positions_in_segments

TOKENS_PER_BATCH = 8_192
ROWS_PER_CHUNK = 2_048
MASK_SEED = 20_191_002  # one fixed mask for every model and run


@dataclass(frozen=True)
class ScoredText:
    """A text as one model sees it: token ids of each document, and sizes counted on the text
    itself."""

    documents: Sequence[np.ndarray]
    words: int
    bytes: int


@torch.inference_mode()
def perplexity(
    family: Family,
    model: PreTrainedModel,
    text: ScoredText,
    *,
    end_of_text: int,
    context: int | None = None,
) -> dict[str, float | int]:
    """The perplexities of a causal model, with what was counted; see the module for the
    protocol."""
    context = min(context or 10**9, family.num_positions(model.config))
    blocks = sum_of_losses(family, model, blocks_of(text.documents, context, end_of_text))
    stride = min(512, context // 2)
    sliding = sum_of_losses(family, model, windows_of(text.documents, context, stride, end_of_text))
    num_tokens = sum(map(len, text.documents))
    assert blocks[1] == sliding[1] == num_tokens, (blocks, sliding, num_tokens)
    return {
        "token": math.exp(blocks[0] / num_tokens),
        "token_s512": math.exp(sliding[0] / num_tokens),
        "word": math.exp(min(blocks[0] / text.words, 700.0)),
        "bits_per_byte": blocks[0] / math.log(2) / text.bytes,
        "tokens_scored": num_tokens,
        "words": text.words,
        "bytes": text.bytes,
    }


def blocks_of(
    documents: Sequence[np.ndarray], context: int, end_of_text: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Ids of each block, end-of-text first, and how many of its last tokens are scored: all
    others."""
    for ids in documents:
        for start in range(0, len(ids), context - 1):
            part = ids[start : start + context - 1]
            yield np.concatenate([[end_of_text], part]), len(part)


def windows_of(
    documents: Sequence[np.ndarray], context: int, stride: int, end_of_text: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Ids of each window and how many of its last tokens are scored: those no window before
    scored."""
    for ids in documents:
        whole = np.concatenate([[end_of_text], ids])
        scored = 1
        while scored < len(whole):
            stop = min(len(whole), context if scored == 1 else scored + stride)
            yield whole[max(0, stop - context) : stop], stop - scored
            scored = stop


def sum_of_losses(
    family: Family, model: PreTrainedModel, windows: Iterator[tuple[np.ndarray, int]]
) -> tuple[float, int]:
    """Sum of -log p over the scored tokens in nats, and their number."""
    total, count = 0.0, 0
    ordered = sorted(windows, key=lambda window: len(window[0]), reverse=True)
    while ordered:
        size = max(1, TOKENS_PER_BATCH // len(ordered[0][0]))
        batch = _scored_batch(ordered[:size])
        del ordered[:size]
        total += _loss_sum(family, model, batch)
        count += batch.num_rows("predicted")
    _check_finite(total)
    return total, count


@torch.inference_mode()
def mean_loss(family: Family, model: PreTrainedModel, source: SequenceSource) -> tuple[float, int]:
    """Mean loss over all predicted tokens of packed sequences, and their number.

    A masked source is masked by one fixed seed. (Of a causal one, a sequence's first tokens are
    predicted with little context; `perplexity` is the measure of text.)
    """
    total, count = 0.0, 0
    for batch in fixed_batches(source):
        total += _loss_sum(family, model, batch)
        count += batch.num_rows("predicted")
    _check_finite(total)
    return total / max(1, count), count


def fixed_batches(source: SequenceSource) -> Iterator[Batch]:
    """All sequences of a source in order, under the one fixed mask."""
    size = max(1, TOKENS_PER_BATCH // source.sequence_length)
    for start in range(0, source.num_sequences, size):
        numbers = np.arange(start, min(start + size, source.num_sequences))
        yield source.batch(numbers, np.zeros_like(numbers), MASK_SEED)


def _check_finite(total: float) -> None:
    if not math.isfinite(total):
        raise DataError("The model's loss on this text is not finite; its weights are damaged.")


def _scored_batch(windows: Sequence[tuple[np.ndarray, int]]) -> Batch:
    length = len(windows[0][0]) - 1
    inputs = np.zeros((len(windows), length), np.int64)
    labels = np.full((len(windows), length), IGNORED, np.int64)
    segments = np.zeros((len(windows), length), np.int64)
    for row, (ids, num_scored) in enumerate(windows):
        size = len(ids) - 1
        inputs[row, :size], segments[row, :size] = ids[:-1], 1
        labels[row, size - num_scored : size] = ids[len(ids) - num_scored :]
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(labels),
        torch.from_numpy(segments),
        torch.from_numpy(positions_in_segments(segments)),
        causal=True,
        uniform=bool(segments.all()),
    )


def _loss_sum(family: Family, model: PreTrainedModel, batch: Batch) -> float:
    labels = batch.labels[batch.rows("predicted")].to(model.device).split(ROWS_PER_CHUNK)
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for logits, own in zip(row_logits(family, model, batch), labels, strict=True):
        total += F.cross_entropy(logits, own, reduction="sum").double()
    return float(total)


def row_logits(
    family: Family, model: PreTrainedModel, batch: Batch
) -> Iterator[Float[Tensor, "R V"]]:
    """Float32 logits of the rows that are predicted, some at a time."""
    head = family.head(model)
    features = head.transform(family.run_rows(model, batch.to(model.device), "predicted"))
    for part in features.split(ROWS_PER_CHUNK):
        yield F.linear(part, head.weight, head.bias).float()

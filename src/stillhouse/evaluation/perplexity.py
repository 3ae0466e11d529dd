"""Perplexity of a causal model, and the masked loss of a masked one; every token is scored.

Causal protocol: each document is cut into blocks of one token less than the model's context; a
block begins with the document start, which is not scored itself. `token_sliding` is measured with a
sliding window: each window scores the last `stride` tokens after all the context that fits before
them, with stride = min(512, context / 2). Word perplexity and bits per byte divide the same sum by
words (split at white space before tokenizing) and UTF-8 bytes, so models with different tokenizers
can be compared.

Masked protocol: the packed validation sequences under one fixed mask, the same for every model with
the same tokenizer; the mean over the predicted tokens.

A figure that is not finite (NaN, infinity, a perplexity beyond float64) is None.

Confidence intervals of the difference of two models' losses are paired bootstraps: the difficulty
of a document is common to both models, so documents are resampled with both losses together (Efron
1979; Koehn 2004 for text).

Axes: B sequences, N all of a source, T positions, R rows, V vocabulary, W windows, U units of text
(documents, or blocks where these are few).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from stillhouse.families.base import Family
from stillhouse.tasks.metrics import CONFIDENCE, RESAMPLES
from stillhouse.tokens.batches import IGNORED, Batch, SequenceSource
from stillhouse.tokens.packing import packed_batch

TOKENS_PER_BATCH = 8_192
ROWS_PER_CHUNK = 2_048
MASK_SEED = 20_191_002  # one fixed mask for every model and run
FEWEST_DOCUMENTS = 20  # with fewer, intervals are resampled over blocks
MOST_UNITS = 1_000  # more are pooled with their neighbors, to keep evaluation.json small

Window = tuple[np.ndarray, int]  # token ids, and the number of last tokens that are scored


@dataclass(frozen=True)
class Observer:
    """Callbacks of a scoring.

    Attributes:
        tick: After each batch, with its number of tokens.
        chunk: With float32 logits (R V) and labels (R) of tokens that count for the loss, each
            token once: no chunk is kept.
    """

    tick: Callable[[int], None] = lambda _: None
    chunk: Callable[[Tensor, Tensor], None] = lambda _logits, _labels: None


SILENT = Observer()


@dataclass(frozen=True)
class ScoredText:
    """A text for one tokenizer: token ids of each document, and sizes counted on the text."""

    documents: Sequence[np.ndarray]
    words: int
    bytes: int
    parts: Mapping[str, range] = field(default_factory=dict)  # the documents of each part


@dataclass(frozen=True)
class UnitLosses:
    """A model's losses on the units of a text (documents, or blocks where these are few), in nats:
    the input of the interval of a difference; and those on each part of the text, if it has any."""

    unit: str
    sums: Float[np.ndarray, " U"]
    tokens: Int[np.ndarray, " U"]
    parts: "Mapping[str, UnitLosses]" = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Nats per token; None where it is not finite, or nothing was scored."""
        total, count = float(self.sums.sum()), int(self.tokens.sum())
        return total / count if count and math.isfinite(total) else None


@torch.inference_mode()
def score_text(
    family: Family,
    model: PreTrainedModel,
    text: ScoredText,
    *,
    document_start: int,
    context: int | None = None,
    observer: Observer = SILENT,
) -> tuple[dict[str, float | int | None], UnitLosses]:
    """The perplexities of a causal model with what was counted, and the losses of each unit of the
    text, from the blocks."""
    context = min(context or 10**9, family.num_positions(model.config))
    blocks, windows = cut_text(text, context, document_start)
    sums, counts = window_losses(family, model, blocks, observer=observer)
    sliding, sliding_counts = window_losses(
        family,
        model,
        windows,
        observer=Observer(observer.tick),  # a second time, in longer context
    )
    total, num_tokens = float(sums.sum()), int(counts.sum())
    assert num_tokens == sliding_counts.sum() == sum(map(len, text.documents))
    figures = {
        "token": _exp(total / num_tokens),
        "token_sliding": _exp(float(sliding.sum()) / num_tokens),
        "word": _exp(total / text.words),
        "bits_per_byte": total / math.log(2) / text.bytes if math.isfinite(total) else None,
        "tokens_scored": num_tokens,
        "words": text.words,
        "bytes": text.bytes,
    }
    sizes = [-(-len(ids) // (context - 1)) for ids in text.documents]
    block = f"blocks of {context - 1} tokens"
    whole = _unit_losses(block, sizes, sums, counts)
    first = np.cumsum([0, *sizes])  # block of each document
    parts = {
        name: _unit_losses(block, sizes[own.start : own.stop], sums[blocks], counts[blocks])
        for name, own in text.parts.items()
        for blocks in [slice(first[own.start], first[own.stop])]
    }
    return figures, replace(whole, parts=parts)


def _unit_losses(block: str, sizes: list[int], sums: np.ndarray, counts: np.ndarray) -> UnitLosses:
    """The losses on documents of so many blocks each, or on these where documents are few."""
    sizes = [size for size in sizes if size]
    if len(sizes) < FEWEST_DOCUMENTS:
        return _pooled(block, sums, counts)
    first = np.cumsum([0, *sizes[:-1]])
    return _pooled("documents", np.add.reduceat(sums, first), np.add.reduceat(counts, first))


def cut_text(
    text: ScoredText, context: int, document_start: int
) -> tuple[list[Window], list[Window]]:
    """The blocks and the sliding windows of a text."""
    blocks = list(blocks_of(text.documents, context, document_start))
    return blocks, list(windows_of(text.documents, context, stride_of(context), document_start))


def stride_of(context: int) -> int:
    """Tokens that each sliding window scores, except the first window of a document."""
    return max(1, min(512, context // 2))


def _exp(nats: float) -> float | None:
    """None where the result is beyond float64, or the loss was not finite."""
    return math.exp(nats) if math.isfinite(nats) and nats < 709 else None


def _pooled(unit: str, sums: np.ndarray, counts: np.ndarray) -> UnitLosses:
    """Pool neighbors where there are more than `MOST_UNITS` units."""
    size = -(-len(sums) // MOST_UNITS)
    if size <= 1:
        return UnitLosses(unit, sums, counts)
    first = np.arange(0, len(sums), size)
    sums, counts = np.add.reduceat(sums, first), np.add.reduceat(counts, first)
    return UnitLosses(f"groups of {size} {unit}", sums, counts)


def blocks_of(
    documents: Sequence[np.ndarray], context: int, document_start: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Ids of each block, beginning with the document start, and the number of scored tokens: all
    others."""
    for ids in documents:
        for start in range(0, len(ids), context - 1):
            part = ids[start : start + context - 1]
            yield np.concatenate([[document_start], part]), len(part)


def windows_of(
    documents: Sequence[np.ndarray], context: int, stride: int, document_start: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Ids of each window and the number of its last tokens that are scored: those that no earlier
    window scored."""
    for ids in documents:
        whole = np.concatenate([[document_start], ids])
        scored = 1
        while scored < len(whole):
            stop = min(len(whole), context if scored == 1 else scored + stride)
            yield whole[max(0, stop - context) : stop], stop - scored
            scored = stop


def batches_of(windows: Iterable[Window]) -> list[list[int]]:
    """Indices of the windows in each batch: of similar length, the longest first."""
    lengths = [len(ids) for ids, _ in windows]
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches = []
    while order:
        size = max(1, TOKENS_PER_BATCH // lengths[order[0]])
        batches.append(order[:size])
        del order[:size]
    return batches


@torch.inference_mode()
def window_losses(
    family: Family,
    model: PreTrainedModel,
    windows: Sequence[Window],
    *,
    observer: Observer = SILENT,
) -> tuple[Float[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """For each window the sum of -log p over its scored tokens in nats, and their number."""
    sums, counts = np.zeros(len(windows)), np.zeros(len(windows), np.int64)
    for numbers in batches_of(windows):
        batch = _scored_batch([windows[number] for number in numbers])
        sums[numbers] = sequence_losses(family, model, batch, observer)
        counts[numbers] = batch.rows("predicted").sum(1).numpy()
        observer.tick(batch.input_ids.numel())
    return sums, counts


@torch.inference_mode()
def masked_losses(
    family: Family, model: PreTrainedModel, source: SequenceSource, *, observer: Observer = SILENT
) -> UnitLosses:
    """The losses of the predicted tokens of packed sequences, masked by one fixed seed.

    (Of a causal source, a sequence's first tokens are predicted with little context; for text, use
    `score_text`.)
    """
    found, numbers = [np.zeros(0)], [np.zeros(0, np.int64)]
    for batch in fixed_batches(source):
        found.append(sequence_losses(family, model, batch, observer))
        numbers.append(batch.rows("predicted").sum(1).numpy())
        observer.tick(batch.input_ids.numel())
    unit = f"sequences of {source.sequence_length} tokens"
    sums, counts = np.concatenate(found), np.concatenate(numbers)
    parts = {
        name: _pooled(unit, sums[own.start : own.stop], counts[own.start : own.stop])
        for name, own in source.parts.items()
    }
    return replace(_pooled(unit, sums, counts), parts=parts)


def fixed_batches(
    source: SequenceSource, order: Int[np.ndarray, " N"] | None = None
) -> Iterator[Batch]:
    """All sequences of a source under one fixed mask, by default in the order of the text."""
    size = _sequences_per_batch(source)
    order = np.arange(source.num_sequences) if order is None else order
    for start in range(0, source.num_sequences, size):
        numbers = order[start : start + size]
        yield source.batch(numbers, np.zeros_like(numbers), MASK_SEED)


def num_fixed_batches(source: SequenceSource) -> int:
    return -(-source.num_sequences // _sequences_per_batch(source))


def _sequences_per_batch(source: SequenceSource) -> int:
    return max(1, TOKENS_PER_BATCH // source.sequence_length)


def _scored_batch(windows: Sequence[tuple[np.ndarray, int]]) -> Batch:
    length = len(windows[0][0]) - 1
    inputs = np.zeros((len(windows), length), np.int64)
    labels = np.full((len(windows), length), IGNORED, np.int64)
    segments = np.zeros((len(windows), length), np.int64)
    for row, (ids, num_scored) in enumerate(windows):
        size = len(ids) - 1
        inputs[row, :size], segments[row, :size] = ids[:-1], 1
        labels[row, size - num_scored : size] = ids[len(ids) - num_scored :]
    return packed_batch(inputs, labels, segments, causal=True)


def sequence_losses(
    family: Family, model: PreTrainedModel, batch: Batch, observer: Observer = SILENT
) -> Float[np.ndarray, " B"]:
    """The sum over each sequence's predicted tokens, in float64."""
    labels = batch.labels[batch.rows("predicted")].to(model.device).split(ROWS_PER_CHUNK)
    losses = []
    for logits, own in zip(row_logits(family, model, batch), labels, strict=True):
        losses.append(F.cross_entropy(logits, own, reduction="none").double().cpu())
        observer.chunk(logits, own)
    sequences = batch.row_numbers("predicted") // batch.labels.shape[1]
    sums = torch.zeros(len(batch.labels), dtype=torch.float64)
    return (
        sums.index_add_(0, sequences.cpu(), torch.cat(losses)).numpy() if losses else sums.numpy()
    )


def row_logits(
    family: Family, model: PreTrainedModel, batch: Batch
) -> Iterator[Float[Tensor, "R V"]]:
    """Float32 logits of the predicted rows, in chunks."""
    head = family.head(model)
    features = head.transform(family.run_rows(model, batch.to(model.device), "predicted"))
    for part in features.split(ROWS_PER_CHUNK):
        yield head.logits(part).float()


FEWEST_UNITS = 10  # with fewer, resamples do not represent the text: no interval


def difference(one: UnitLosses, other: UnitLosses, *, seed: int = 0) -> dict[str, float | None]:
    """The loss of `one` minus that of `other`, in nats per token, with its 95 % interval.

    `low` and `high` are None where the text has too few units; all three where a loss is not
    finite.
    """
    value = low = high = None
    if one.mean is not None and other.mean is not None:
        value = one.mean - other.mean
        if len(one.tokens) >= FEWEST_UNITS:
            low, high = paired_interval(one.sums - other.sums, one.tokens, seed=seed)
    return {"value": value, "low": low, "high": high}


def paired_interval(
    differences: Float[np.ndarray, " U"], tokens: Int[np.ndarray, " U"], *, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of sum(differences) / sum(tokens) over resampled units.

    The quantiles are those of the expanded percentile interval (Hesterberg 2015, section 3.4): the
    plain one is too narrow for few units.
    """
    num_units = len(tokens)
    generator = np.random.default_rng(seed)
    times_drawn = generator.multinomial(num_units, np.full(num_units, 1 / num_units), RESAMPLES)
    draws = (times_drawn @ differences) / (times_drawn @ tokens)
    tail = _tail(num_units)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _tail(num_units: int) -> float:
    """The tail probability on each side: Phi(-t * sqrt(n / (n - 1))), t Student's quantile.

    t by its expansion in 1 / (n - 1) (Abramowitz and Stegun 26.7.5), to 0.001 from n = 10 on.
    """
    z, freedom = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), num_units - 1
    t = (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    return NormalDist().cdf(-t * math.sqrt(num_units / freedom))

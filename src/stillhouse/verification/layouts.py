"""The same documents in three layouts, and what transformers itself says of them.

A document's place in a packed batch is found from its tokens alone (the one that begins a document,
the one that pads), and not from the batch's own segment numbers, which are under test.

Axes: B sequences, T positions, V vocabulary, D hidden size.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from stillhouse.families.base import hidden_state_size
from stillhouse.objectives.projection import projection_of
from stillhouse.tokens.batches import IGNORED, Batch


@dataclass(frozen=True)
class Span:
    """One document, or its part, within a sequence of a batch."""

    row: int
    start: int
    stop: int

    @property
    def places(self) -> slice:
        return slice(self.start, self.stop)


def document_spans(batch: Batch, *, begins: int | None, pads: int | None) -> list[Span]:
    """The span of each document.

    Args:
        begins: The token that begins a document; None where all of a sequence is read as one.
        pads: The token that fills a sequence up, where nothing else is written with it.
    """
    spans = []
    for row, ids in enumerate(batch.input_ids.tolist()):
        stop = next((at for at, token in enumerate(ids) if token == pads), len(ids))
        starts = [at for at in range(1, stop) if ids[at] == begins]
        edges = [0, *starts, stop]
        spans += [Span(row, *pair) for pair in itertools.pairwise(edges)]
    return spans


def cropped(batch: Batch, sequences: int, length: int) -> Batch:
    """The first positions of the first sequences; a label that would be outside stays."""
    parts = {
        name: getattr(batch, name)[:sequences, :length]
        for name in ("input_ids", "labels", "segment_ids", "position_ids")
    }
    uniform = bool((parts["segment_ids"] == 1).all())
    return Batch(**parts, causal=batch.causal, uniform=uniform)


def without_last_labels(batch: Batch, spans: Sequence[Span]) -> Batch:
    """The batch without the label at each document's last position, which is the next document's
    first token: transformers' own loss has none there."""
    labels = batch.labels.clone()
    for span in spans:
        labels[span.row, span.stop - 1] = IGNORED
    return replace(batch, labels=labels)


def one_document_a_row(batch: Batch, spans: Sequence[Span], pad: int) -> Batch:
    """Each document in a sequence of its own, padded to the longest."""
    shape = (len(spans), max(span.stop - span.start for span in spans))
    inputs = torch.full(shape, pad)
    labels, segments = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
    for number, span in enumerate(spans):
        size = span.stop - span.start
        inputs[number, :size] = batch.input_ids[span.row, span.places]
        labels[number, :size] = batch.labels[span.row, span.places]
        segments[number, :size] = 1
    positions = torch.arange(shape[1]).expand(shape).contiguous()
    return Batch(inputs, labels, segments, positions, causal=batch.causal, uniform=False)


def each_alone(batch: Batch, spans: Sequence[Span], pad: int) -> list[Batch]:
    """Each document as a batch of one sequence, without padding and without a mask."""
    return [replace(one_document_a_row(batch, [span], pad), uniform=True) for span in spans]


@torch.inference_mode()
def plain_outputs(
    model: PreTrainedModel, batch: Batch, spans: Sequence[Span]
) -> dict[str, Float[np.ndarray, "B T _"]]:
    """Logits (B, T, V) and last hidden states (B, T, D) from transformers' own forward pass, one
    document at a time; zeros at padding. A student's projection is applied."""
    shape, config = batch.input_ids.shape, model.config
    logits = np.zeros((*shape, config.vocab_size), np.float32)
    hidden = np.zeros((*shape, hidden_state_size(config)), np.float32)
    projection = projection_of(model)
    for span in spans:
        ids = batch.input_ids[span.row, span.places][None].to(model.device)
        place = span.row, span.places
        logits[place] = model(input_ids=ids).logits[0].float().cpu().numpy()
        hidden[place] = model.base_model(input_ids=ids).last_hidden_state[0].float().cpu().numpy()
    if projection is not None:
        hidden = hidden @ projection.get_parameter("weight").float().cpu().numpy().T
    return {"logits": logits, "hidden": hidden}


@torch.inference_mode()
def transformers_loss(
    model: PreTrainedModel, batch: Batch, spans: Sequence[Span]
) -> tuple[float, int]:
    """Sum of the language modeling loss by `model(input_ids, labels=...)`, one document at a time,
    and the number of labels it counts. A causal model is given the tokens themselves as labels."""
    total, count = 0.0, 0
    for span in spans:
        ids = batch.input_ids[span.row, span.places][None].to(model.device)
        labels = ids if batch.causal else batch.labels[span.row, span.places][None].to(ids.device)
        number = ids.shape[1] - 1 if batch.causal else int((labels != IGNORED).sum())
        if number:
            total += float(model(input_ids=ids, labels=labels).loss) * number
            count += number
    return total, count

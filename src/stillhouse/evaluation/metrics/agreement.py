"""How far a model agrees with its teacher, token by token.

With p the teacher's distribution of the next token and q the model's, the sum over the vocabulary
of min(p, q) is one minus their total variation distance. It is also the probability that a token
drafted by the model is accepted in speculative decoding at temperature 1 (Leviathan et al. 2023,
section 3.2): the draft acceptance rate.

Axes: R rows, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse import units
from stillhouse.evaluation.agreement_bins import (
    RowAgreement,
    frequency_edges,
    position_edges,
)
from stillhouse.evaluation.metrics.base import Metric, Model, Subjects, progress
from stillhouse.evaluation.perplexity import (
    MASK_SEED,
    fixed_batches,
    num_fixed_batches,
    row_logits,
)
from stillhouse.tokens.batches import Batch, SequenceSource, epoch_order

ROWS = 16_384  # predicted tokens, at least, where the split has as many
WITH_ITSELF: Mapping[str, float | None] = {"acceptance_rate": 1.0, "top1_agreement": 1.0}


def measure(subjects: Subjects) -> dict[str, dict[str, Any]]:
    """Each model's agreement with the model `teacher`; nothing without a teacher."""
    if (source := subjects.validation) is None:
        return {}
    others = {name: model for name, model in subjects.models.items() if name != "teacher"}
    title = f"{subjects.label}agreement with the teacher of {', '.join(others)}"
    rows = next(fixed_batches(source)).num_rows("predicted") if source.num_sequences else 0
    total = min(num_fixed_batches(source), -(-ROWS // max(1, rows)))
    with progress(subjects.reporter, title, total) as tick:
        found = agreement(
            subjects.models["teacher"], others, source, subjects.token_counts, tick=tick
        )
    return {name: {"agreement": each} for name, each in {"teacher": WITH_ITSELF, **found}.items()}


@torch.inference_mode()
def agreement(
    teacher: Model,
    models: Mapping[str, Model],
    source: SequenceSource,
    token_counts: Integer[np.ndarray, " V"] | None = None,
    *,
    tick: Callable[[int], None] = lambda _: None,
) -> dict[str, Mapping[str, Any]]:
    """The mean overlap of each model's distribution with the teacher's (`acceptance_rate`) and the
    share of tokens with the same most likely prediction (`top1_agreement`), over the first
    predicted tokens of the source; both None where the logits of one of the two are not finite.

    With `token_counts` of a text also `by_frequency` and `by_position` (`agreement_bins`).
    """
    overlap, same, count = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0), 0
    rows = {name: RowAgreement() for name in models}
    labels, positions = [], []
    for batch, chunks in compared(teacher, [*models.values()], source):
        labels.append(batch.labels[batch.rows("predicted")].numpy())
        positions.append(batch.row_numbers("predicted").numpy() % batch.labels.shape[1])
        for expected, *found in chunks:
            best = expected.argmax(-1)
            for name, logits in zip(models, found, strict=True):
                overlap[name] += float(overlaps(expected, logits).double().sum())
                same[name] += int((best == logits.argmax(-1)).sum())
                if token_counts is not None:
                    rows[name].add(expected, logits)
            count += len(best)
        tick(batch.input_ids.numel())

    def bins(name: str) -> dict[str, Any]:
        if token_counts is None or not count:
            return {}
        counts, places = token_counts[np.concatenate(labels)], np.concatenate(positions)
        counts = counts.astype(np.int64)
        return {
            "by_frequency": rows[name].by_bin(counts, frequency_edges(counts)),
            "by_position": rows[name].by_bin(places, position_edges(source.sequence_length)),
        }

    return {
        name: {
            "acceptance_rate": overlap[name] / max(1, count),
            "top1_agreement": same[name] / max(1, count),
            **bins(name),
        }
        if math.isfinite(overlap[name])
        else dict.fromkeys(WITH_ITSELF)
        for name in models
    }


def compared(
    teacher: Model, models: Sequence[Model], source: SequenceSource
) -> Iterator[tuple[Batch, Iterator[tuple[Float[Tensor, "R V"], ...]]]]:
    """The batches of the first predicted tokens of a source, `ROWS` or a few more, each with the
    logits of its predicted rows: the teacher's and each model's, chunk by chunk.

    Of a text with parts, whose first tokens are those of one part, sequences are drawn at random.
    """
    order = epoch_order(MASK_SEED, 0, source.num_sequences) if source.parts else None
    count = 0
    for batch in fixed_batches(source, order):
        if count >= ROWS:
            return
        logits = (row_logits(*model, batch) for model in (teacher, *models))
        yield batch, zip(*logits, strict=True)
        count += batch.num_rows("predicted")


def overlaps(p_logits: Float[Tensor, "R V"], q_logits: Float[Tensor, "R V"]) -> Float[Tensor, " R"]:
    """The sum of min(p, q) over the vocabulary, for each row."""
    return torch.minimum(p_logits.softmax(-1), q_logits.softmax(-1)).sum(-1)


METRICS = [
    Metric(
        "agreement",
        "agreement.acceptance_rate",
        "Draft acceptance rate",
        units.SHARE,
        measure,
        lower_is_better=False,
    ),
    Metric(
        "agreement",
        "agreement.top1_agreement",
        "Top-1 agreement with the teacher",
        units.SHARE,
        measure,
        lower_is_better=False,
    ),
]

"""How far a model agrees with its teacher, token by token.

With p the teacher's distribution of the next token and q the model's, the sum over the vocabulary
of min(p, q) is one minus their total variation distance. It is also the probability that a token
drafted by the model is accepted in speculative decoding at temperature 1 (Leviathan et al. 2023,
section 3.2): the draft acceptance rate.

Axes: R rows, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse import units
from stillhouse.evaluation.metrics.base import Metric, Model, Subjects
from stillhouse.evaluation.perplexity import fixed_batches, row_logits
from stillhouse.tokens.batches import SequenceSource

ROWS = 16_384  # predicted tokens, at least, where the split has as many
WITH_ITSELF: Mapping[str, float | None] = {"acceptance_rate": 1.0, "top1_agreement": 1.0}


def measure(subjects: Subjects) -> dict[str, dict[str, Any]]:
    """Each model's agreement with the model `teacher`; nothing without a teacher."""
    if subjects.validation is None:
        return {}
    teacher = subjects.models["teacher"]
    return {
        name: {
            "agreement": WITH_ITSELF
            if name == "teacher"
            else agreement(teacher, model, subjects.validation)
        }
        for name, model in subjects.models.items()
    }


@torch.inference_mode()
def agreement(teacher: Model, model: Model, source: SequenceSource) -> Mapping[str, float | None]:
    """The mean overlap of the two distributions (`acceptance_rate`) and the share of tokens with
    the same most likely prediction (`top1_agreement`), over the first predicted tokens of the
    source; both None where a model's logits are not finite."""
    overlap, same, count = 0.0, 0, 0
    for batch in fixed_batches(source):
        if count >= ROWS:
            break
        for logits in zip(row_logits(*teacher, batch), row_logits(*model, batch), strict=True):
            overlap += float(overlaps(*logits).double().sum())
            p, q = (each.argmax(-1) for each in logits)
            same += int((p == q).sum())
            count += len(p)
    if not math.isfinite(overlap):
        return dict.fromkeys(WITH_ITSELF)
    return {"acceptance_rate": overlap / max(1, count), "top1_agreement": same / max(1, count)}


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

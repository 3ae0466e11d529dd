"""How far a model agrees with its teacher, token by token.

With p the teacher's distribution of the next token and q the model's, the sum over the vocabulary
of min(p, q) is one less their total variation distance. It is also the probability that a token
the model drafts is accepted in speculative decoding, at temperature 1 (Leviathan et al. 2023,
section 3.2), so it says how useful a student is as a draft.

Axes: R rows, V vocabulary.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.evaluation.perplexity import fixed_batches, row_logits
from stillhouse.families.base import Family
from stillhouse.tokens.batches import SequenceSource

ROWS = 16_384  # predicted tokens, at least, where there are as many
WITH_ITSELF: Mapping[str, float | None] = {"acceptance": 1.0, "same_choice": 1.0}


@torch.inference_mode()
def agreement(
    teacher: tuple[Family, PreTrainedModel],
    model: tuple[Family, PreTrainedModel],
    source: SequenceSource,
) -> Mapping[str, float | None]:
    """The mean overlap of the two distributions (`acceptance`), and the share of tokens where both
    find the same one likeliest (`same_choice`), over the first predicted tokens of the source;
    None of both where a model's logits are not finite."""
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
        return {"acceptance": None, "same_choice": None}
    return {"acceptance": overlap / max(1, count), "same_choice": same / max(1, count)}


def overlaps(p_logits: Float[Tensor, "R V"], q_logits: Float[Tensor, "R V"]) -> Float[Tensor, " R"]:
    """Of each row, the sum over the vocabulary of min(p, q)."""
    return torch.minimum(p_logits.softmax(-1), q_logits.softmax(-1)).sum(-1)

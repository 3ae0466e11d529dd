"""Batches in transformers' form, as the objective reads them.

Axes: B sequences, T positions.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.registry import family_of
from stillhouse.tokens.batches import IGNORED, Batch


def batch_of(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Batch:
    """A batch in transformers' form as the objective reads it.

    Positions are counted within each sequence: padding on either side changes nothing.
    `position_ids` that begin again at 0 separate documents that do not attend to each other.

    Raises:
        RecipeError: no labels, or token types other than 0.
    """
    if "labels" not in inputs:
        raise RecipeError("The inputs have no labels; give them as for model(..., labels=labels).")
    if "token_type_ids" in inputs and bool(inputs["token_type_ids"].any()):
        raise RecipeError("The inputs have token_type_ids other than 0, which are not supported.")
    ids, labels = inputs["input_ids"], inputs["labels"]
    mask = inputs.get("attention_mask", torch.ones_like(ids)).long()
    positions = inputs.get("position_ids")
    segments = mask
    if positions is None:
        positions = (mask.cumsum(1) - 1).clamp_min(0)
    else:
        segments = (positions == 0).cumsum(1) * mask
    causal = family_of(model.config).language_modeling == "causal"
    return Batch(
        input_ids=ids,
        labels=(_next_tokens(labels) if causal else labels).masked_fill(mask == 0, IGNORED),
        segment_ids=segments,
        position_ids=positions,
        causal=causal,
        uniform=bool((segments == 1).all()),
    )


def _next_tokens(labels: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)

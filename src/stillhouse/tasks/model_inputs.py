"""A batch as the arguments of a transformers model."""

from typing import Any

from transformers import PreTrainedModel

from stillhouse.families import family_of, reads_token_types
from stillhouse.tasks.encoded import TaskBatch


def inputs_of(model: PreTrainedModel, batch: TaskBatch) -> dict[str, Any]:
    """Token types only where the model was made with several of them: some have no such argument,
    and for GPT-2 they are tokens."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
    }
    if reads_token_types(model.config):
        inputs["token_type_ids"] = batch.token_type_ids
    if family_of(model.config).language_modeling == "causal":
        inputs["use_cache"] = False
    return inputs

"""A batch as the arguments of a transformers model, and the model's outputs for it."""

from typing import Any

from transformers import PreTrainedModel

from stillhouse.families.attention import explicit_attention_mask
from stillhouse.families.registry import family_of
from stillhouse.models.task_models import reads_token_types
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


def run(model: PreTrainedModel, batch: TaskBatch) -> Any:
    """What the model returns, by the attention that is fastest where it is."""
    causal = family_of(model.config).language_modeling == "causal"
    inputs = inputs_of(model, batch) | {"attention_mask": batch.visible(causal=causal)[:, None]}
    with explicit_attention_mask(model.config):
        return model(**inputs)

"""Models with the head of a task, from any folder: with its own head or a new one.

The body of the folder must be complete; a head that the folder lacks is initialized from a seed, as
the architecture does. Classes are those of transformers' `AutoModelFor...`.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto

from stillhouse.errors import ModelError
from stillhouse.families.base import copy_layers, with_layers
from stillhouse.families.registry import family_of
from stillhouse.families.settings import FAMILY_NAMES
from stillhouse.models.folder_check import differing_shapes, load_config
from stillhouse.models.load import load_weights
from stillhouse.models.special_ids import padding_id

TaskHead = Literal[
    "SequenceClassification",
    "QuestionAnswering",
    "TokenClassification",
    "CausalLM",
    "MaskedLM",
    "Body",
]
# The architectures for which transformers has each head.
HEADS: Mapping[str, Mapping[str, str]] = {
    "SequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "QuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "TokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}


def load_task_model(
    folder: Path,
    head: TaskHead,
    settings: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    new_head_seed: int | None = None,
    headers_only: bool = False,
) -> PreTrainedModel:
    """A model with this head, in float32 on the CPU, in evaluation mode.

    Args:
        settings: Values of the configuration, such as the labels.
        new_head_seed: Initializes a head that the folder lacks.
        tokenizer, headers_only: As in `load_model`.

    Raises:
        ModelError: no such model, damaged weights, an incomplete body, an architecture without
            this head, or, without a seed, a missing head.
    """
    config = configured(load_config(folder), settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(new_head_seed or 0)
        model, report = load_weights(
            folder, _model_class(config, head), config, tokenizer, headers_only=headers_only
        )
    _check_whole(folder, model, head, report, new_head=new_head_seed is not None)
    return model.eval()


def random_task_model(
    config: PretrainedConfig, head: TaskHead, settings: Mapping[str, Any]
) -> PreTrainedModel:
    """A model of this shape and head with random parameters, in evaluation mode.

    Args:
        settings: As in `load_task_model`.
    """
    own = configured(copy.deepcopy(config), settings)
    return _model_class(own, head).from_config(own, dtype=torch.float32).eval()


def task_model_with_num_layers(model: PreTrainedModel, layer_map: Sequence[int]) -> PreTrainedModel:
    """The model with fewer layers: layer i is layer layer_map[i] of `model`."""
    family = family_of(model.config)
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    layers = prefix + family.layers.removeprefix(f"{family.body}.")
    student = type(model)(with_layers(model.config, layer_map))
    student.load_state_dict(copy_layers(layers, model.state_dict(), layer_map))
    if student.can_generate():
        student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()


def reorder_outputs(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Permute a classification head: output i becomes the former output order[i]."""
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    head = next(layer for layer in reversed(layers) if layer.out_features == len(order))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[list(order)])


def configured(config: PretrainedConfig, settings: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration with these values, and a padding token if it has none."""
    for name, value in settings.items():
        setattr(config, name, value)
    config.pad_token_id = padding_id(config)
    return config


def head_of(config: PretrainedConfig) -> TaskHead | None:
    """The task head of a model with this configuration; None for language models and others."""
    name = (config.architectures or [""])[0]
    if found := re.search(
        "For(SequenceClassification|QuestionAnswering|TokenClassification)$", name
    ):
        return cast("TaskHead", found[1])
    return "Body" if name.endswith("Model") and "Head" not in name else None


def check_head(config: PretrainedConfig, head: TaskHead) -> None:
    """Check that transformers has this head for an architecture.

    Raises:
        ModelError: it has not.
    """
    if head in HEADS and config.model_type not in HEADS[head]:
        known = ", ".join(name for name in FAMILY_NAMES if name in HEADS[head])
        raise ModelError(
            f"transformers has no {head} head for the architecture {config.model_type}, so it "
            f"cannot learn this task. Start from one of {known}."
        )


def _model_class(config: PretrainedConfig, head: TaskHead) -> Any:
    check_head(config, head)
    return (
        transformers.AutoModel if head == "Body" else getattr(transformers, f"AutoModelFor{head}")
    )


def _check_whole(
    folder: Path, model: PreTrainedModel, head: TaskHead, report: Any, *, new_head: bool
) -> None:
    """Check for missing weights. A pooler counts as part of the head: models trained without one
    lack it."""
    prefix = "" if head == "Body" else f"{model.base_model_prefix}."
    family = family_of(model.config)
    layers = re.escape(family.layers.removeprefix(f"{family.body}."))
    extra = [
        str(name)
        for name in report["unexpected_keys"]
        if re.search(rf"(^|\.){layers}\.\d+\.", name)
        and not any(re.search(pattern, name) for pattern in family.ignored_on_load)
    ]
    if extra:
        raise ModelError(
            f"{folder} has weights of its layers that a {family.model_type} model of its "
            f"config.json has no place for: {len(extra)}, such as {min(extra)}. Give the "
            "config.json that was saved with the weights."
        )
    mismatched = differing_shapes(report["mismatched_keys"])
    missing = [str(name) for name in report["missing_keys"]]
    if head == "Body":
        missing = [name for name in missing if not name.startswith("pooler.")]
    elif new_head:
        pooler = f"{prefix}pooler."
        missing = [
            name for name in missing if name.startswith(prefix) and not name.startswith(pooler)
        ]
    if wrong := mismatched + missing:
        shown = ", ".join(sorted(wrong)[:3]) + (", ..." if len(wrong) > 3 else "")
        what = "of another shape or missing" if mismatched else "missing"
        raise ModelError(
            f"{folder} is not a {family.model_type} model with a head for this "
            f"task: {len(wrong)} parameters are {what} ({shown}). Give a model that was trained on "
            "it."
        )

"""Checks a model's configuration: normalizes settings that would only get in the way, and refuses
those that ask for a computation outside the family.

transformers silently ignores keys that it no longer knows, such as relative positions: another
model would be computed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from stillhouse.errors import ModelError

ACTIVATIONS = ("activation_function", "hidden_act", "activation")
# How a model runs, not what it computes; other values break some caller.
NORMAL = {
    "chunk_size_feed_forward": 0,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "_attn_implementation": "sdpa",
}


def settle_config(config: PretrainedConfig, language_modeling: str) -> None:
    """Normalize a configuration in place.

    Raises:
        ModelError: it asks for what Stillhouse does not compute; the message does not name the
            file.
    """
    for reason in _refusals(config, language_modeling):
        raise ModelError(reason)
    for name, value in NORMAL.items():
        setattr(config, name, value)
    if isinstance(config.architectures, str):
        config.architectures = [config.architectures]


def _refusals(config: PretrainedConfig, language_modeling: str) -> Iterator[str]:
    """Why the model cannot be computed here, for each reason."""
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        yield (
            f"the model is quantized (quantization_config{f', {method}' if method else ''}); "
            "Stillhouse reads weights in full precision. Give the model before quantization, or "
            "save it after model.dequantize()."
        )
    for key in ACTIVATIONS:
        name = getattr(config, key, None)
        if name is not None and name not in ACT2FN:
            yield f"{key} is {name!r}, which is not an activation function; such as gelu, gelu_new."
    positions = getattr(config, "position_embedding_type", None)
    if positions not in (None, "absolute"):
        yield (
            f"position_embedding_type is {positions!r}; Stillhouse, like transformers 5, supports "
            "only absolute positions."
        )
    is_decoder = language_modeling == "masked" and getattr(config, "is_decoder", False)
    for is_set, reason in (
        (
            getattr(config, "pruned_heads", None),
            "pruned_heads names heads that are missing; give a model with all of its heads.",
        ),
        (
            getattr(config, "add_cross_attention", False),
            "add_cross_attention is true: the model attends to another model's states. Give one "
            "without cross-attention.",
        ),
        (
            is_decoder,
            "is_decoder is true: each token attends only to those before it, but models of this "
            "family are bidirectional here. Give an encoder.",
        ),
    ):
        if is_set:
            yield reason


def empty_model_of(model_class: Any, config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    """The model of a folder without memory for its weights (on torch's meta device).

    Raises:
        ModelError: the configuration does not make a model.
    """
    try:
        with torch.device("meta"):
            return getattr(model_class, "from_config", model_class)(config)
    except Exception as error:  # a hostile file can raise anything in the library
        raise ModelError(
            f"No model can be made by {folder / 'config.json'}: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def differing_shapes(mismatched: Any) -> list[str]:
    """transformers' report of mismatched weights, as text."""
    return [
        f"{name} is {tuple(found)} in the file and {tuple(wanted)} by config.json"
        for name, found, wanted in sorted(mismatched)
    ]

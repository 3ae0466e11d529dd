"""A model's configuration: settled where it would only disturb, refused where it asks for a
computation that is not the family's.

transformers passes over keys that it no longer knows, such as relative positions, in silence: the
model would be computed as another one.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from stillhouse.errors import ModelError

ACTIVATIONS = ("activation_function", "hidden_act", "activation")
# Of how a model is run, not of what it computes; each of them breaks a caller somewhere.
AS_USUAL = {
    "chunk_size_feed_forward": 0,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "_attn_implementation": "sdpa",
}


def settle_config(config: PretrainedConfig, language_modeling: str) -> None:
    """Change a configuration in place so that its model can be used here.

    Raises:
        ModelError: it asks for what Stillhouse does not compute; without the name of its file.
    """
    if reason := _refusal(config, language_modeling):
        raise ModelError(reason)
    for name, value in AS_USUAL.items():
        setattr(config, name, value)
    if isinstance(config.architectures, str):
        config.architectures = [config.architectures]


def _refusal(config: PretrainedConfig, language_modeling: str) -> str | None:
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        return (
            f"the model is quantized (quantization_config{f', {method}' if method else ''}); "
            "Stillhouse reads weights in full precision. Give the model before quantization, or "
            "save it after model.dequantize()."
        )
    for key in ACTIVATIONS:
        name = getattr(config, key, None)
        if name is not None and name not in ACT2FN:
            return f"{key} is {name!r}, which is no activation function; such as gelu, gelu_new."
    positions = getattr(config, "position_embedding_type", None)
    if positions not in (None, "absolute"):
        return (
            f"position_embedding_type is {positions!r}; Stillhouse, as transformers 5, computes "
            "absolute positions alone."
        )
    if getattr(config, "pruned_heads", None):
        return "pruned_heads names heads that are not there; give a model with all of its heads."
    if getattr(config, "add_cross_attention", False):
        return (
            "add_cross_attention is true: the model reads another model's states. Give one that "
            "reads text alone."
        )
    if language_modeling == "masked" and getattr(config, "is_decoder", False):
        return (
            "is_decoder is true: each token sees those before it alone, and a model of this kind "
            "is read in both directions here. Give an encoder."
        )
    return None


def empty_model_of(model_class: Any, config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    """The model of a folder without memory for its weights.

    Raises:
        ModelError: no model can be made by its configuration.
    """
    try:
        with torch.device("meta"):
            return getattr(model_class, "from_config", model_class)(config)
    except Exception as error:  # whatever the numbers of a hostile file lead to
        raise ModelError(
            f"No model can be made by {folder / 'config.json'}: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """An error's message in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def differing_shapes(mismatched: Any) -> list[str]:
    """transformers' report of weights of another shape, for people."""
    return [
        f"{name} is {tuple(found)} in the file and {tuple(wanted)} by config.json"
        for name, found, wanted in sorted(mismatched)
    ]

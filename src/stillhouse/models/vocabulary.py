"""Models with a part of their vocabulary: the rows of the tokens that stay, under new ids.

Axes: K tokens that stay.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Integer
from numpy import ndarray
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from stillhouse.errors import ModelError
from stillhouse.families.registry import family_of

ID_KEYS = ("_token_id", "_token_ids")  # endings of keys of configurations that name tokens
LISTS = ("bad_words_ids", "begin_suppress_tokens", "sequence_bias", "suppress_tokens")


def with_vocabulary_size(config: PretrainedConfig, size: int) -> PretrainedConfig:
    """A configuration for counting parameters: its special token ids are those of a larger
    vocabulary, or nothing."""
    return _with_ids(config, size, {id: id for id in range(size)})


def keep_tokens(model: PreTrainedModel, kept: Integer[ndarray, " K"]) -> PreTrainedModel:
    """The model with these rows of its embeddings, head and biases, which stay tied where they are.

    With all tokens it computes what it did, to the bit.

    Args:
        kept: Old ids, rising; the new id of a token is its place.

    Raises:
        ModelError: padding gets another id, by which the architecture numbers positions.
    """
    new_ids = {old: new for new, old in enumerate(kept.tolist())}
    family, config = family_of(model.config), _with_ids(model.config, len(kept), new_ids)
    if family.position_offset(config) != family.position_offset(model.config):
        raise ModelError(
            f"In a {family.model_type} model positions are numbered from the padding token's id, "
            "which would change with the tokens before it. Leave student.vocabulary out."
        )
    smaller = type(model)(config).eval()
    shapes = {name: parameter.shape for name, parameter in smaller.named_parameters()}
    weights, places = {}, torch.from_numpy(kept)
    for name, weight in model.named_parameters():
        for dim, size in enumerate(shapes[name]):
            if weight.shape[dim] != size:
                weight = weight.index_select(dim, places)
        weights[name] = weight.detach()
    smaller.load_state_dict(weights, strict=False)  # a tied weight has one name there
    if model.can_generate() and (generation := model.generation_config) is not None:
        smaller.generation_config = _generation(generation, new_ids)
    smaller.num_tokens = len(kept)  # pyright: ignore[reportArgumentType]
    return smaller


def _with_ids(config: PretrainedConfig, size: int, new_ids: Mapping[int, int]) -> PretrainedConfig:
    new = copy.deepcopy(config)
    new.vocab_size = size
    for key, value in _ids_in(config.to_dict()).items():
        setattr(new, key, _renumbered(value, new_ids))
    return new


def _generation(config: GenerationConfig, new_ids: Mapping[int, int]) -> GenerationConfig:
    """With new ids; settings that list tokens otherwise are left out, as `special_ids` ignores
    them."""
    new = copy.deepcopy(config)
    for key, value in _ids_in(config.to_dict()).items():
        setattr(new, key, _renumbered(value, new_ids))
    for key in LISTS:
        setattr(new, key, None)
    return new


def _ids_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if key.endswith(ID_KEYS) and isinstance(value, int | list)
    }


def _renumbered(value: int | list[int], new_ids: Mapping[int, int]) -> int | list[int] | None:
    """New ids; those of tokens that are gone are left out."""
    if isinstance(value, int):
        return new_ids.get(value)
    return [new_ids[id] for id in value if id in new_ids]

"""RoBERTa (Liu et al. 2019), and its shallower students such as DistilRoBERTa.

Position embeddings begin after the padding id: position 0 of a sequence is row pad_token_id + 1.
"""

from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PretrainedConfig

from stillhouse.errors import ModelError
from stillhouse.families.base import Family


def _position_offset(config: PretrainedConfig) -> int:
    if not isinstance(config.pad_token_id, int):
        raise ModelError(
            f"pad_token_id is {config.pad_token_id}, but positions of a RoBERTa model begin after "
            "its padding token. Set it to the tokenizer's (1 in the published models)."
        )
    return config.pad_token_id + 1


def head_transform(model: Any, hidden: Tensor) -> Tensor:
    """Dense, GELU, norm."""
    return model.lm_head.layer_norm(F.gelu(model.lm_head.dense(hidden)))


FAMILY = partial(
    Family,
    head_transform=head_transform,
    config_from_scratch=lambda size, special: {
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "intermediate_size": size.intermediate_size or 4 * size.hidden_size,
        "hidden_dropout_prob": size.dropout,
        "attention_probs_dropout_prob": size.dropout,
        "pad_token_id": special["pad"],
        "bos_token_id": special["cls"],
        "eos_token_id": special["sep"],
    },
    position_offset=_position_offset,
    tiny={"pad_token_id": 1},
    ignored_on_load=(r"^roberta\.pooler\.", r"\.position_ids$"),
)

"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler; itself a teacher here too."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import DistilBertForMaskedLM

from stillhouse.families.base import (
    Family,
)
from stillhouse.families.settings import ArchitectureRecipe

LAYERS = "distilbert.transformer.layer"


def _head_transform(model: DistilBertForMaskedLM, hidden: Tensor) -> Tensor:
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))


def _config_from_scratch(size: ArchitectureRecipe, special: Mapping[str, int]) -> dict[str, Any]:
    return {
        "hidden_dim": size.intermediate_size or 4 * size.hidden_size,
        "dropout": size.dropout,
        "attention_dropout": size.dropout,
        "pad_token_id": special["pad"],
    }


FAMILY = Family(
    model_type="distilbert",
    language_modeling="masked",
    model_class="DistilBertForMaskedLM",
    body="distilbert",
    layers=LAYERS,
    attention_projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    position_wise=("attention.out_lin", "ffn"),
    embeddings={
        "word_embeddings": "distilbert.embeddings.word_embeddings.weight",
        "position_embeddings": "distilbert.embeddings.position_embeddings.weight",
    },
    head_transform=_head_transform,
    config_from_scratch=_config_from_scratch,
)

"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler; itself a teacher here too."""

from collections.abc import Mapping

from torch import Tensor
from transformers import DistilBertConfig, DistilBertForMaskedLM, PretrainedConfig

from stillhouse.families.base import (
    Family,
    Head,
    projection,
)
from stillhouse.families.settings import ArchitectureRecipe

LAYERS = "distilbert.transformer.layer"


def _head(model: DistilBertForMaskedLM) -> Head:
    weight, bias = projection(model.vocab_projector)

    def transform(hidden: Tensor) -> Tensor:
        return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))

    return Head(transform, weight, bias)


def _config_from_scratch(
    size: ArchitectureRecipe,
    vocabulary_size: int,
    sequence_length: int,
    special: Mapping[str, int],
) -> PretrainedConfig:
    return DistilBertConfig(
        vocab_size=vocabulary_size,
        max_position_embeddings=sequence_length,
        n_layers=size.num_layers,
        n_heads=size.num_heads,
        dim=size.hidden_size,
        hidden_dim=size.intermediate_size or 4 * size.hidden_size,
        dropout=size.dropout,
        attention_dropout=size.dropout,
        pad_token_id=special["pad"],
    )


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
    whole_head=_head,
    config_from_scratch=_config_from_scratch,
)

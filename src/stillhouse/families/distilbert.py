"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler; itself a teacher here too."""

from torch import Tensor
from transformers import DistilBertForMaskedLM

from stillhouse.families.base import (
    Family,
    Head,
    StudentMapping,
    projection,
    renumber_layers,
    with_num_layers,
)

LAYERS = "distilbert.transformer.layer"


def _head(model: DistilBertForMaskedLM) -> Head:
    weight, bias = projection(model.vocab_projector)

    def transform(hidden: Tensor) -> Tensor:
        return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))

    return Head(transform, weight, bias)


FAMILY = Family(
    model_type="distilbert",
    language_modeling="masked",
    model_class="DistilBertForMaskedLM",
    body="distilbert",
    layers=LAYERS,
    attention_projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    position_wise=("attention.out_lin", "ffn"),
    final_norm=None,
    embeddings={
        "word_embeddings": "distilbert.embeddings.word_embeddings.weight",
        "position_embeddings": "distilbert.embeddings.position_embeddings.weight",
    },
    whole_head=_head,
    students={"distilbert": StudentMapping(with_num_layers("n_layers"), renumber_layers(LAYERS))},
    config_from_scratch=None,
)

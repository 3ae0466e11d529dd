"""BERT (Devlin et al. 2019), and its students: a shallower BERT, or DistilBERT.

DistilBERT has no token type embeddings. The vector of type 0, which every position of a teacher
that reads one sequence receives, is folded into the position embeddings: there it changes nothing
else. In the word embeddings it would shift the logits of the tied head."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, PretrainedConfig

from stillhouse.families.base import (
    Family,
    Head,
    Parameters,
    StudentMapping,
    projection,
    renumber_layers,
    with_num_layers,
)
from stillhouse.families.settings import ArchitectureRecipe

LAYERS = "bert.encoder.layer"

_TO_DISTILBERT = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def _head(model: BertForMaskedLM) -> Head:
    predictions = model.cls.predictions
    weight, bias = projection(predictions.decoder)
    return Head(predictions.transform, weight, bias)


def _distilbert_config(teacher: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        max_position_embeddings=teacher.max_position_embeddings,
        sinusoidal_pos_embds=False,
        n_layers=num_layers,
        n_heads=teacher.num_attention_heads,
        dim=teacher.hidden_size,
        hidden_dim=teacher.intermediate_size,
        dropout=teacher.hidden_dropout_prob,
        attention_dropout=teacher.attention_probs_dropout_prob,
        activation=teacher.hidden_act,
        initializer_range=teacher.initializer_range,
        pad_token_id=teacher.pad_token_id,
    )


def _distilbert_weights(teacher: Parameters, layer_map: Sequence[int]) -> dict[str, Tensor]:
    embeddings, head = "bert.embeddings", "cls.predictions"
    type_0 = teacher[f"{embeddings}.token_type_embeddings.weight"][0]
    positions = teacher[f"{embeddings}.position_embeddings.weight"]
    student = {
        "distilbert.embeddings.word_embeddings.weight": teacher[
            f"{embeddings}.word_embeddings.weight"
        ],
        "distilbert.embeddings.position_embeddings.weight": positions + type_0,
        "vocab_projector.bias": teacher[f"{head}.bias"],
    }
    for kind in ("weight", "bias"):
        student[f"distilbert.embeddings.LayerNorm.{kind}"] = teacher[
            f"{embeddings}.LayerNorm.{kind}"
        ]
        student[f"vocab_transform.{kind}"] = teacher[f"{head}.transform.dense.{kind}"]
        student[f"vocab_layer_norm.{kind}"] = teacher[f"{head}.transform.LayerNorm.{kind}"]
        for new, old in enumerate(layer_map):
            for theirs, ours in _TO_DISTILBERT.items():
                name = f"distilbert.transformer.layer.{new}.{ours}.{kind}"
                student[name] = teacher[f"{LAYERS}.{old}.{theirs}.{kind}"]
    return student


def _scratch_config(
    teacher: ArchitectureRecipe,
    vocabulary_size: int,
    sequence_length: int,
    special: Mapping[str, int],
) -> PretrainedConfig:
    return BertConfig(
        vocab_size=vocabulary_size,
        max_position_embeddings=sequence_length,
        hidden_size=teacher.hidden_size,
        num_hidden_layers=teacher.num_layers,
        num_attention_heads=teacher.num_heads,
        intermediate_size=teacher.intermediate_size or 4 * teacher.hidden_size,
        hidden_dropout_prob=teacher.dropout,
        attention_probs_dropout_prob=teacher.dropout,
        pad_token_id=special["pad"],
    )


FAMILY = Family(
    model_type="bert",
    language_modeling="masked",
    model_class="BertForMaskedLM",
    body="bert",
    layers=LAYERS,
    attention_projections=("attention.self.query", "attention.self.key", "attention.self.value"),
    position_wise=("attention.output", "intermediate", "output"),
    final_norm=None,
    embeddings={
        "word_embeddings": "bert.embeddings.word_embeddings.weight",
        "position_embeddings": "bert.embeddings.position_embeddings.weight",
        "token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
    },
    whole_head=_head,
    students={
        "distilbert": StudentMapping(_distilbert_config, _distilbert_weights),
        "bert": StudentMapping(with_num_layers("num_hidden_layers"), renumber_layers(LAYERS)),
    },
    config_from_scratch=_scratch_config,
    # The pooler and the next-sentence head of BERT's pretraining, which no masked model uses.
    ignored_on_load=(r"^bert\.pooler\.", r"^cls\.seq_relationship\.", r"\.position_ids$"),
)

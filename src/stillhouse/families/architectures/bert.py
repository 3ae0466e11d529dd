"""BERT (Devlin et al. 2019), and its students: a shallower BERT, or DistilBERT.

DistilBERT has no token type embeddings. A teacher of single sequences adds the vector of type 0 at
every position, so it is added to the student's position embeddings. Added to the word embeddings
it would shift the logits of the tied head.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from transformers import DistilBertConfig, PretrainedConfig

from stillhouse.families.base import Family, Parameters, StudentMapping

LAYERS = "bert.encoder.layer"

# Modules of a BERT, and those of a DistilBERT that take their weights; within a layer, and outside.
_LAYER_TO_DISTILBERT = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_TO_DISTILBERT = {
    "bert.embeddings.word_embeddings": "distilbert.embeddings.word_embeddings",
    "bert.embeddings.position_embeddings": "distilbert.embeddings.position_embeddings",
    "bert.embeddings.LayerNorm": "distilbert.embeddings.LayerNorm",
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
    "cls.predictions": "vocab_projector",  # a bias; the weight is the word embeddings
}


def _distilbert_config(teacher: PretrainedConfig, layer_map: Sequence[int]) -> PretrainedConfig:
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        max_position_embeddings=teacher.max_position_embeddings,
        sinusoidal_pos_embds=False,
        n_layers=len(layer_map),
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
    modules = [*_TO_DISTILBERT.items()]
    modules += [
        (f"{LAYERS}.{old}.{theirs}", f"distilbert.transformer.layer.{new}.{ours}")
        for new, old in enumerate(layer_map)
        for theirs, ours in _LAYER_TO_DISTILBERT.items()
    ]
    student = {
        f"{ours}.{kind}": teacher[f"{theirs}.{kind}"]
        for theirs, ours in modules
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in teacher
    }
    positions = "distilbert.embeddings.position_embeddings.weight"
    type_0 = teacher["bert.embeddings.token_type_embeddings.weight"][0]
    return student | {positions: student[positions] + type_0}


FAMILY = partial(
    Family,
    head_transform=lambda model, hidden: model.cls.predictions.transform(hidden),
    students={"distilbert": StudentMapping(_distilbert_config, _distilbert_weights)},
    config_from_scratch=lambda size, special: {
        "intermediate_size": size.intermediate_size or 4 * size.hidden_size,
        "hidden_dropout_prob": size.dropout,
        "attention_probs_dropout_prob": size.dropout,
        "pad_token_id": special["pad"],
    },
    # The pooler and the next-sentence head of BERT's pretraining, which no masked model uses.
    ignored_on_load=(r"^bert\.pooler\.", r"^cls\.seq_relationship\.", r"\.position_ids$"),
)

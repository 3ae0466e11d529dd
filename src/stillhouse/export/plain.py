"""A model in the form that other engines compute: every key of its configuration is carried over,
folded into the weights, or refused by name.

GPT-2's attention is softmax(s q k^T), with s = 1 / sqrt(D) in every engine. If a configuration
asks for another s (`scale_attn_weights`, `scale_attn_by_inverse_layer_idx`), the query projection
is multiplied by its ratio to 1 / sqrt(D), which gives the same products.

Axes: D size of a head.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.export.vocabulary import Vocabulary
from stillhouse.inference.loaded import LoadedModel

TANH_GELU = frozenset(
    {"gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate"}
)  # one function, written five ways
GELU = frozenset({"gelu", "gelu_python"})


@dataclass(frozen=True)
class ConfigKeys:
    """The keys of a family's configuration, by how an export handles them.

    Attributes:
        activation: The key that names the activation function, which formats support differently.
        carried: Written, as shapes and values of tensors or as a setting of the format.
        folded: Multiplied into the weights.
        fixed: Required values, in formats that are written tensor by tensor.
        without_effect: No effect on the outputs of an exported model.
    """

    activation: str
    carried: frozenset[str]
    folded: frozenset[str]
    fixed: Mapping[str, Any]
    without_effect: frozenset[str]

    @property
    def known(self) -> frozenset[str]:
        """All keys."""
        names = frozenset({self.activation, *self.fixed})
        return names | self.carried | self.folded | self.without_effect


_ANY_MODEL = frozenset(
    {
        "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label",
        "initializer_range", "is_encoder_decoder", "label2id", "model_type", "output_attentions",
        "output_hidden_states", "problem_type", "return_dict", "transformers_version", "use_cache",
    }
)  # fmt: skip
_TOKENS = frozenset(
    {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
)
_BERT = ConfigKeys(
    activation="hidden_act",
    carried=_TOKENS
    | {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
    },
    folded=frozenset(),
    fixed={"is_decoder": False, "add_cross_attention": False},
    without_effect=_ANY_MODEL
    | {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"},
)  # fmt: skip
CONFIG_KEYS: Mapping[str, ConfigKeys] = {
    "gpt2": ConfigKeys(
        activation="activation_function",
        carried=_TOKENS
        | {"n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon"},
        folded=frozenset({"scale_attn_weights", "scale_attn_by_inverse_layer_idx"}),
        fixed={"add_cross_attention": False},
        without_effect=_ANY_MODEL
        | {
            "resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn", "summary_type",
            "summary_use_proj", "summary_activation", "summary_proj_to_labels",
            "summary_first_dropout",
        },
    ),
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": ConfigKeys(
        activation="activation",
        carried=_TOKENS
        | {
            "max_position_embeddings", "sinusoidal_pos_embds", "n_layers", "n_heads", "dim",
            "hidden_dim",
        },
        folded=frozenset(),
        fixed={},
        without_effect=_ANY_MODEL
        | {"dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"},
    ),
}  # fmt: skip


def config_refusal(config: PretrainedConfig, activations: Collection[str]) -> str | None:
    """Why a format with these activation functions does not support a model; None if it does.

    (Not needed for formats that trace the model.)
    """
    keys = CONFIG_KEYS[config.model_type]
    activation = getattr(config, keys.activation)
    if activation not in activations:
        return (
            f"its {keys.activation} is {activation}, and the format computes "
            f"{', '.join(sorted(activations))}"
        )
    for key, value in keys.fixed.items():
        if getattr(config, key) != value:
            return f"its {key} is {getattr(config, key)}, and the format computes {value} alone"
    return None


@dataclass(frozen=True)
class Exported:
    """The model to write: `model` computes what `loaded.model` computes, with transformers'
    defaults and without padding of the vocabulary."""

    loaded: LoadedModel
    model: PreTrainedModel
    vocabulary: Vocabulary


def plain(loaded: LoadedModel, vocabulary: Vocabulary) -> Exported:
    """A copy of the model to write."""
    model = copy.deepcopy(loaded.model)
    if len(vocabulary) < model.config.vocab_size:
        model.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    if model.config.model_type == "gpt2":
        _fold_attention_scales(model)
    activation = CONFIG_KEYS[model.config.model_type].activation
    if getattr(model.config, activation) in TANH_GELU:
        setattr(model.config, activation, "gelu_new")
    return Exported(loaded, model, vocabulary)


@torch.no_grad()
def _fold_attention_scales(model: Any) -> None:
    for block in model.base_model.h:
        attention = block.attn
        usual = attention.head_dim**-0.5
        ratio, attention.scaling = attention.scaling / usual, usual
        if ratio != 1:
            queries = slice(attention.embed_dim)
            attention.c_attn.weight[:, queries] *= ratio
            attention.c_attn.bias[queries] *= ratio
    model.config.scale_attn_weights = True
    model.config.scale_attn_by_inverse_layer_idx = False

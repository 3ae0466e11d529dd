"""The model to export, its vocabulary, and the interfaces of formats and their engines.

The exported model is a copy in the form that other engines compute: every key of its configuration
is carried over, folded into the weights, or refused by name. GPT-2's attention is softmax(s q k^T),
with s = 1 / sqrt(D) in every engine. If a configuration asks for another s (`scale_attn_weights`,
`scale_attn_by_inverse_layer_idx`), the query projection is multiplied by its ratio to 1 / sqrt(D),
which gives the same products.

Axes: B texts, T tokens, D size of a head.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.errors import ModelError
from stillhouse.inference.loaded import LoadedModel

Precision = Literal["fp32", "fp16", "int8"]

TANH_GELU = frozenset(
    {"gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate"}
)  # one function, written five ways
GELU = frozenset({"gelu", "gelu_python"})


@dataclass(frozen=True)
class ConfigKeys:
    """The keys of a family's configuration, by how an export handles them.

    Attributes:
        activation: The key that names the activation function, which formats support differently.
        fixed: Required values, in formats that are written tensor by tensor.
        others: Keys that need nothing: written, as shapes and values of tensors or as a setting of
            the format; multiplied into the weights; or without effect on an exported model.
    """

    activation: str
    fixed: Mapping[str, Any]
    others: frozenset[str]


_ANY_MODEL = frozenset(
    {  # without effect
        "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label",
        "initializer_range", "is_encoder_decoder", "label2id", "model_type", "output_attentions",
        "output_hidden_states", "problem_type", "return_dict", "transformers_version", "use_cache",
    }
    # written
    | {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
)  # fmt: skip
_DECODER = ConfigKeys(
    activation="hidden_act",
    fixed={},
    others=_ANY_MODEL
    | {  # written
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "max_position_embeddings", "rms_norm_eps",
        "rope_parameters",
    }
    # tested: a window that is shorter than the context is refused
    | {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}
    # without effect
    | {"attention_dropout"},
)  # fmt: skip
_GEMMA = replace(
    _DECODER,
    activation="hidden_activation",
    fixed={"attention_bias": False},
    others=_DECODER.others
    | {"final_logit_softcapping"}  # written
    | {"query_pre_attn_scalar"}  # tested
    | {"use_bidirectional_attention"},  # refused at load
)
_BERT = ConfigKeys(
    activation="hidden_act",
    fixed={"is_decoder": False, "add_cross_attention": False},
    others=_ANY_MODEL
    | {  # written
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
    }
    # without effect
    | {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"},
)  # fmt: skip
CONFIG_KEYS: Mapping[str, ConfigKeys] = {
    "gpt2": ConfigKeys(
        activation="activation_function",
        fixed={"add_cross_attention": False},
        others=_ANY_MODEL
        # written
        | {"n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon"}
        # multiplied into the weights
        | {"scale_attn_weights", "scale_attn_by_inverse_layer_idx"}
        | {  # without effect
            "resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn", "summary_type",
            "summary_use_proj", "summary_activation", "summary_proj_to_labels",
            "summary_first_dropout",
        },
    ),
    "llama": replace(
        _DECODER,
        fixed={"pretraining_tp": 1},
        others=_DECODER.others | {"attention_bias", "mlp_bias"},  # written
    ),
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": replace(_DECODER, fixed={"attention_bias": False}),
    "phi3": replace(
        _DECODER,
        others=_DECODER.others
        | {"original_max_position_embeddings"}  # written
        | {"resid_pdrop", "embd_pdrop"},  # without effect
    ),
    "gemma2": replace(_GEMMA, others=_GEMMA.others | {"attn_logit_softcapping"}),  # written
    "gemma3_text": replace(
        _GEMMA,
        fixed={"attention_bias": False, "attn_logit_softcapping": None},
        others=_GEMMA.others | {"_sliding_window_pattern"},  # the default of layer_types
    ),
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": ConfigKeys(
        activation="activation",
        fixed={},
        others=_ANY_MODEL
        | {  # written
            "max_position_embeddings", "sinusoidal_pos_embds", "n_layers", "n_heads", "dim",
            "hidden_dim",
        }
        # without effect
        | {"dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"},
    ),
}  # fmt: skip


def config_refusal(config: PretrainedConfig, activations: Collection[str]) -> str | None:
    """Why a format with these activation functions does not support a model; None if it does.

    (Not needed for formats that trace the model.)
    """
    keys = CONFIG_KEYS.get(config.model_type)
    if keys is None:
        return f"the format does not hold {config.model_type} models"
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
class Vocabulary:
    """The tokens of a model, without padding after the last one.

    Attributes:
        names: By id; the name of an added token is its text.
        unused: Ids without a token; their names are <|padding_ID|>.
        special: Special tokens.
        added: Other tokens that were added to the base vocabulary.
        end_ids: The tokens that end a text, the tokenizer's own first: those of the model's files,
            or else the tokenizer's. May be empty.
        begin_id: The token that starts a text, if there is one.
    """

    names: tuple[str, ...]
    unused: frozenset[int]
    special: frozenset[int]
    added: frozenset[int]
    end_ids: tuple[int, ...]
    begin_id: int | None

    def __len__(self) -> int:
        return len(self.names)


def vocabulary_of(name: str, loaded: LoadedModel) -> Vocabulary:
    """The vocabulary of a model and its tokenizer.

    Raises:
        ModelError: the tokenizer has tokens without an embedding, or no tokens.
    """
    tokenizer, config = loaded.tokenizer, loaded.model.config
    by_id = {id: token for token, id in tokenizer.get_vocab().items()}
    size = max(by_id, default=-1) + 1
    if not 0 < size <= config.vocab_size:
        raise ModelError(
            f"The tokenizer of {name} has {size} tokens, and the model has embeddings for "
            f"{config.vocab_size}. Save the tokenizer that belongs to the model, or call "
            "model.resize_token_embeddings(len(tokenizer)) and train it."
        )
    added = tokenizer.added_tokens_decoder
    special = {id for id, token in added.items() if token.special}.union(tokenizer.all_special_ids)
    ids, starts = range(size), [config.bos_token_id, cast("Any", tokenizer.bos_token_id)]
    return Vocabulary(
        names=tuple(by_id[id] if id in by_id else _unused_name(id, by_id.values()) for id in ids),
        unused=frozenset(id for id in loaded.unused_ids if id < size),
        special=frozenset(special),
        added=frozenset(added) - special,
        end_ids=_end_ids(loaded),
        begin_id=next((id for id in starts if id in ids), None),
    )


def _unused_name(id: int, taken: Iterable[str]) -> str:
    name = f"<|padding_{id}|>"
    return f"{name}_" if name in taken else name


def _end_ids(loaded: LoadedModel) -> tuple[int, ...]:
    own: Any = loaded.tokenizer.eos_token_id
    known = loaded.end_ids or {own} - {None}
    return tuple(sorted(known, key=lambda id: (id != own, id)))


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
    keys = CONFIG_KEYS.get(model.config.model_type)
    if keys is not None and getattr(model.config, keys.activation) in TANH_GELU:
        setattr(model.config, keys.activation, "gelu_new")
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


@runtime_checkable
class CausalEngine(Protocol):
    """A causal model in another engine.

    Attributes:
        end_ids: The tokens at which the engine ends a text.
    """

    end_ids: frozenset[int]

    @property
    def activation(self) -> nn.Module | None:
        """The engine's variant of the model's activation function; None if it is the same."""
        ...

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Log-probability of each token but the first, given those before it; in nats."""
        ...

    def generate(self, ids: Sequence[int], number: int) -> list[int]:
        """Greedy next tokens, end-of-text tokens excluded."""
        ...


@runtime_checkable
class TokenizingEngine(Protocol):
    """An engine that has a tokenizer."""

    def tokens_of(self, text: str) -> list[int]:
        """The engine's own tokenization."""
        ...

    def text_of(self, ids: Sequence[int]) -> str:
        """The engine's own decoding."""
        ...


@runtime_checkable
class EncoderEngine(Protocol):
    """An encoder in another engine."""

    def outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs for `input_ids`, `attention_mask` and, if the model has them, `token_type_ids`
        (int64, B x T; right padding), by transformers' names."""
        ...


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        precisions: Supported precisions; the first is the default.
        refusal: Why the format does not support a model; None if it does.
        write: Writes a model into an empty folder; returns notes for the user.
        open: Loads the written files into the engine; None if that is not installed.
        engine: The engine's library.
        times: Whether to time the engine: whether the library is used for serving.
        remedy: What helps on this machine where the engine's outputs in a precision differ, beside
            another precision; None if nothing is known.
    """

    precisions: tuple[Precision, ...]
    refusal: Callable[[Exported], str | None]
    write: Callable[[Exported, Path, Precision], list[str]]
    open: Callable[[Exported, Path], CausalEngine | EncoderEngine | None]
    engine: str
    times: bool = True
    remedy: Callable[[Precision], str | None] = lambda precision: None

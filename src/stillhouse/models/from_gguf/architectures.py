"""Between llama.cpp's architectures and those of transformers: settings, names and layouts of
tensors, to read GGUF files and to write them.

Every setting of an architecture is read, or known to change nothing; every tensor has a place. What
has none is refused by name, since a model without it would compute something else.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
from transformers import AutoConfig, PretrainedConfig

from stillhouse.errors import ModelError
from stillhouse.families.base import attention_widths
from stillhouse.models.from_gguf.file import GGUFFile

# Settings that say nothing about the computation, or repeat another one.
SILENT = frozenset({"vocab_size", "rope.dimension_count", "attention.value_length"})
DECODER = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
GPT2 = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
LOCAL_THETA = "rope.freq_base_swa"  # of Gemma 3's layers with a window
GEMMA2 = DECODER | {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}
GEMMA3 = DECODER | {
    LOCAL_THETA: "local_rope_theta",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}
PHI3 = DECODER | {
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "attention.sliding_window": "sliding_window",
}
# What a file may leave out: llama.cpp and transformers assume the same.
OPTIONAL = frozenset(
    {
        "attention.head_count_kv",
        "attention.key_length",
        "rope.freq_base",
        LOCAL_THETA,
        "rope.scaling.original_context_length",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "attention.sliding_window",
    }
)
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the model of 27B
SPECIAL = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}


def _complete(file: GGUFFile, keys: dict[str, Any]) -> None:
    """Fill in what llama.cpp assumes where a file does not say it."""
    keys.setdefault("num_key_value_heads", keys["num_attention_heads"])
    keys.setdefault("head_dim", keys["hidden_size"] // keys["num_attention_heads"])
    theta = float(_shortest(keys.pop("rope_theta", 10_000.0)))
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if file.get("rope.scaling.type") == "linear":
        factor = float(_shortest(file.get("rope.scaling.factor", 1.0)))
        keys["rope_parameters"] |= {"rope_type": "linear", "factor": factor}


def _complete_gpt2(file: GGUFFile, keys: dict[str, Any]) -> None:
    """Nothing: every setting is a key of its own."""


def _complete_phi3(file: GGUFFile, keys: dict[str, Any]) -> None:
    _complete(file, keys)
    keys["sliding_window"] = keys.get("sliding_window") or None  # 0: none


def _complete_gemma2(file: GGUFFile, keys: dict[str, Any]) -> None:
    """llama.cpp knows the largest model, whose scale of attention is another, by its layers."""
    _complete(file, keys)
    keys["query_pre_attn_scalar"] = attention_scalar(
        file.architecture,
        keys["num_hidden_layers"],
        head_size=keys["head_dim"],
        share=keys["hidden_size"] // keys["num_attention_heads"],
    )


def attention_scalar(architecture: str, num_layers: int, *, head_size: int, share: int) -> int:
    """The square of what llama.cpp divides the attention of a Gemma by.

    Args:
        share: The hidden size over the number of heads.
    """
    return share if num_layers == LARGEST_GEMMA[architecture] else head_size


def _complete_gemma3(file: GGUFFile, keys: dict[str, Any]) -> None:
    """Layers with a window have rotary positions of their own."""
    _complete_gemma2(file, keys)
    local = float(_shortest(keys.pop("local_rope_theta", 10_000.0)))
    keys["rope_parameters"] = {
        "full_attention": keys["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def _derived(config: PretrainedConfig) -> dict[str, Any]:
    return _head_sizes(config) | {"rope.freq_base": float(config.rope_parameters["rope_theta"])}


def _derived_gemma3(config: PretrainedConfig) -> dict[str, Any]:
    kinds = {"rope.freq_base": "full_attention", LOCAL_THETA: "sliding_attention"}
    rotary = {key: config.rope_parameters[kind] for key, kind in kinds.items()}
    return _head_sizes(config) | {key: float(own["rope_theta"]) for key, own in rotary.items()}


def _head_sizes(config: PretrainedConfig) -> dict[str, int]:
    size = attention_widths(config)[0] // config.num_attention_heads
    return dict.fromkeys(
        ("attention.key_length", "attention.value_length", "rope.dimension_count"), size
    )


def _derived_gpt2(config: PretrainedConfig) -> dict[str, Any]:
    return {"feed_forward_length": config.n_inner or 4 * config.n_embd}


@dataclass(frozen=True)
class Architecture:
    """How one of llama.cpp's architectures is stored.

    Attributes:
        model_type: Of transformers.
        names: Of the table of tensor names in the package `gguf`.
        settings: From settings in the file to keys of the configuration.
        fixed: Other keys of the configuration.
        complete: Fills in keys of the configuration that follow from several settings.
        derived: Its inverse: settings that follow from several keys.
        optional: Settings that a file may leave out.
        silent: Settings that llama.cpp does not need here, and their only value.
        rotary_pairs: Query and key rows are interleaved, as llama.cpp's rotation takes them.
        transposed: Suffixes of weights that transformers stores as inputs x outputs.
        biases: From a tensor to the key of the configuration that says that it exists.
        norms_plus_one: The weights of norms are stored with 1 added, by which they multiply.
        windows: llama.cpp applies the attention window, to the layers that have one by default.
    """

    model_type: str
    names: gguf.MODEL_ARCH
    settings: Mapping[str, str] = field(default_factory=lambda: DECODER)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    complete: Callable[[GGUFFile, dict[str, Any]], None] = _complete
    derived: Callable[[PretrainedConfig], dict[str, Any]] = _derived
    optional: frozenset[str] = OPTIONAL
    silent: Mapping[str, Any] = field(default_factory=dict)
    rotary_pairs: bool = False
    transposed: tuple[str, ...] = ()
    biases: Mapping[str, str] = field(default_factory=dict)
    norms_plus_one: bool = False
    windows: bool = False


ARCHITECTURES = {
    "gemma2": Architecture(
        "gemma2",
        gguf.MODEL_ARCH.GEMMA2,
        GEMMA2,
        complete=_complete_gemma2,
        norms_plus_one=True,
        windows=True,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        gguf.MODEL_ARCH.GEMMA3,
        GEMMA3,
        complete=_complete_gemma3,
        derived=_derived_gemma3,
        optional=OPTIONAL - {"attention.sliding_window"},
        silent={"attention.sliding_window_pattern": 6},
        norms_plus_one=True,
        windows=True,
    ),
    "gpt2": Architecture(
        "gpt2",
        gguf.MODEL_ARCH.GPT2,
        GPT2,
        {"activation_function": "gelu_new"},
        _complete_gpt2,
        _derived_gpt2,
        transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),
    ),
    "llama": Architecture(
        "llama",
        gguf.MODEL_ARCH.LLAMA,
        rotary_pairs=True,
        biases={"blk.0.attn_q.bias": "attention_bias", "blk.0.ffn_up.bias": "mlp_bias"},
    ),
    "phi3": Architecture("phi3", gguf.MODEL_ARCH.PHI3, PHI3, complete=_complete_phi3),
    "qwen2": Architecture("qwen2", gguf.MODEL_ARCH.QWEN2),
    "qwen3": Architecture("qwen3", gguf.MODEL_ARCH.QWEN3),
}


def architecture_of(file: GGUFFile) -> Architecture:
    """How the file's architecture is stored.

    Raises:
        ModelError: it is not one of those that are read.
    """
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        raise ModelError(
            f"{file.path} holds the architecture {file.architecture}; of GGUF files Stillhouse "
            f"reads {', '.join(sorted(ARCHITECTURES))}. Give the model as a folder of safetensors."
        )
    return found


def config_of(file: GGUFFile) -> PretrainedConfig:
    """The configuration of the model in a file.

    Raises:
        ModelError: a setting is missing, or one is there that changes the computation and has no
            place in transformers' configuration.
    """
    architecture, prefix = architecture_of(file), f"{file.architecture}."
    known = architecture.settings.keys() | SILENT
    found = {key.removeprefix(prefix) for key in file.metadata if key.startswith(prefix)}
    if unknown := sorted(found - known - _neutral(file)):
        values = ", ".join(f"{prefix}{key} = {file.get(key)!r}" for key in unknown[:3])
        raise ModelError(
            f"{file.path} asks for {values}, which Stillhouse does not read from GGUF. Give the "
            "model as a folder of safetensors."
        )
    if missing := sorted(architecture.settings.keys() - found - architecture.optional):
        raise ModelError(
            f"{file.path} has no {prefix}{missing[0]} in its metadata. Convert the model again."
        )
    keys = {name: file.get(key) for key, name in architecture.settings.items() if key in found}
    architecture.complete(file, keys)
    _check_dimensions(file, keys)
    keys |= {name: file.metadata.get(f"tokenizer.ggml.{key}") for key, name in SPECIAL.items()}
    keys |= {name: tensor in file.tensors for tensor, name in architecture.biases.items()}
    return AutoConfig.for_model(
        architecture.model_type,
        **{name: _shortest(value) for name, value in keys.items()},
        **architecture.fixed,
        vocab_size=_vocabulary_size(file),
        tie_word_embeddings="output.weight" not in file.tensors,
    )


def settings_of(config: PretrainedConfig, architecture: Architecture) -> dict[str, Any]:
    """A configuration as settings of a file: what `config_of` reads, by keys without the name of
    the architecture."""
    named = ((key, getattr(config, name, None)) for key, name in architecture.settings.items())
    found = {key: value for key, value in named if value is not None}
    return found | architecture.derived(config)


def _neutral(file: GGUFFile) -> set[str]:
    """Settings whose value asks for nothing."""
    neutral = {"rope.scaling.type": "none", "attention.causal": True, "expert_count": 0}
    neutral |= {"expert_used_count": 0, "use_parallel_residual": True}
    neutral |= architecture_of(file).silent
    scaling = {"rope.scaling.type", "rope.scaling.factor"}
    linear = scaling if file.get("rope.scaling.type") == "linear" else set()
    return linear | {key for key, value in neutral.items() if file.get(key) == value}


def _check_dimensions(file: GGUFFile, keys: Mapping[str, Any]) -> None:
    wrong = {name: value for name, value in keys.items() if isinstance(value, list)}
    if wrong:
        raise ModelError(
            f"{file.path} has layers of different shapes ({next(iter(wrong))} is "
            f"{next(iter(wrong.values()))!r:.60}); Stillhouse reads one shape for all layers."
        )
    size = keys.get("head_dim")
    for key in ("rope.dimension_count", "attention.value_length"):
        if size is not None and file.get(key, size) != size:
            raise ModelError(
                f"{file.path} has {file.architecture}.{key} = {file.get(key)} for heads of "
                f"{size}, which Stillhouse does not read from GGUF. Give the model as a folder of "
                "safetensors."
            )


def _vocabulary_size(file: GGUFFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no tensor token_embd.weight: it is not a whole model.")
    return file.tensors["token_embd.weight"].shape[0]


def _shortest(value: Any) -> Any:
    """A float32 number of the file as it was written in decimals: 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def stored_names(file: GGUFFile, parameters: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """From the model's parameters to the tensors of the file.

    Args:
        parameters: Names and shapes, without those that are tied to others.

    Raises:
        ModelError: a parameter without a tensor, a tensor without a place, or another shape.
    """
    architecture = architecture_of(file)
    num_layers = file.get("block_count")
    table = gguf.get_tensor_name_map(architecture.names, num_layers)
    found = {}
    for name in parameters:
        stem, _, suffix = name.rpartition(".")
        found[name] = f"{table.get_name(stem)}.{suffix}"
    problems = [
        *(f"{name} is missing" for name in sorted({*found.values()} - file.tensors.keys())),
        *(f"{name} has no place" for name in sorted(file.tensors.keys() - {*found.values()})),
        *(
            f"{stored} is {file.tensors[stored].shape} and not {shape}"
            for (name, stored), shape in zip(found.items(), _shapes(file, parameters), strict=True)
            if stored in file.tensors and file.tensors[stored].shape != shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(
            f"{file.path} does not hold the weights of a {architecture.model_type} model: "
            f"{', '.join(problems[:3])}{more}. Give the model as a folder of safetensors."
        )
    return found


def _shapes(file: GGUFFile, parameters: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    transposed = architecture_of(file).transposed
    for name, shape in parameters.items():
        yield shape[::-1] if transposed and name.endswith(transposed) else shape


def in_transformers_layout(file: GGUFFile, name: str, stored: str) -> np.ndarray:
    """The values of a parameter `name`, from the tensor `stored` of the file."""
    architecture, values = architecture_of(file), file.values(stored)
    if architecture.transposed and name.endswith(architecture.transposed):
        values = values.T
    heads = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
    part = stored.split(".")[-2]
    if architecture.norms_plus_one and part.endswith("norm"):
        values = values - 1
    if architecture.rotary_pairs and part in heads:
        num_heads = file.get(heads[part], file.get("attention.head_count"))
        # From (x0, y0, x1, y1, ...) to (x0, x1, ..., y0, y1, ...) in each head.
        pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    return np.require(values, requirements=["C", "W"])


def in_llama_cpp_layout(
    architecture: Architecture, config: PretrainedConfig, name: str, stored: str, values: np.ndarray
) -> np.ndarray:
    """The values of a parameter `name` as the tensor `stored` of a file: the inverse of
    `in_transformers_layout`."""
    if architecture.transposed and name.endswith(architecture.transposed):
        values = values.T
    part = stored.split(".")[-2]
    if architecture.norms_plus_one and part.endswith("norm"):
        values = values + 1
    if architecture.rotary_pairs and part in ("attn_q", "attn_k"):
        grouped = part == "attn_k"
        num_heads = config.num_key_value_heads if grouped else config.num_attention_heads
        # From (x0, x1, ..., y0, y1, ...) to (x0, y0, x1, y1, ...) in each head.
        halves = values.reshape(num_heads, 2, -1, *values.shape[1:])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    return values

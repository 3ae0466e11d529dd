"""GGUF files for tests: tiny models of several architectures, as llama.cpp's converter writes them,
and files that are damaged or of another kind."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stillhouse.models.hub import resolve_folder

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
CONTROL, NORMAL = 3, 1


def sample_tokenizer() -> Any:
    """The sample teacher's tokenizer, with two more special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_folder("sample", offline=True))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def tiny(model_type: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A decoder with every parameter random and its logits far from uniform."""
    size = len(sample_tokenizer())
    config = AutoConfig.for_model(model_type, **SIZES, vocab_size=size, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.2, generator=generator)
    return model


def metadata_of(architecture: str, model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """The metadata of a file, by key; numbers are written as their Python types say."""
    config: Any = model.config
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {id: name for name, id in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    pairs = state["model"]["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    own = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": SIZES["head_dim"],
        "attention.value_length": SIZES["head_dim"],
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    vocabulary = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [names[id] for id in range(len(names))],
        "token_type": [CONTROL if id in special else NORMAL for id in range(len(names))],
        "merges": merges,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>"),
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "add_bos_token": False,
    }
    return {
        **{f"{architecture}.{key}": value for key, value in own.items()},
        **{f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()},
    }


def tensors_of(architecture: str, model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The model's weights by llama.cpp's names, in its layout."""
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    found = {}
    for name, parameter in model.named_parameters():
        values, (stem, _, suffix) = parameter.detach().numpy(), name.rpartition(".")
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = values.shape[0] // SIZES["head_dim"]
            halves = values.reshape(heads, 2, -1, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        found[f"{table.get_name(stem)}.{suffix}"] = values
    return found


def write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """A GGUF file; matrices in the type `kind`. A value of None leaves a key out."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, values in tensors.items():
        own = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(np.ascontiguousarray(values), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, Sequence):
        writer.add_array(key, value)

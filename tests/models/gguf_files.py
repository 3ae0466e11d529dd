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

import stillhouse
from stillhouse.models.from_gguf.agreement import Reference
from stillhouse.models.hub import resolve_folder

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _, BYTE = range(1, 7)
MODEL_TYPES = {"gemma3": "gemma3_text"}  # of transformers, where llama.cpp has another name
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 24},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 24, "num_hidden_layers": 7},
    "phi3": {"pad_token_id": None},
}


def sample_tokenizer() -> Any:
    """The sample teacher's tokenizer, with two more special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_folder("sample", offline=True))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def tiny(model_type: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A decoder with every parameter random and its logits far from uniform."""
    settings.setdefault("vocab_size", len(sample_tokenizer()))
    own = OWN.get(model_type, {})
    config = AutoConfig.for_model(model_type, **(SIZES | own | settings))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    neutral = 0.0 if model_type.startswith("gemma") else 1.0
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(neutral if norm else 0.0, 0.2, generator=generator)
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
    }
    rotary = config.rope_parameters
    if architecture == "gemma3":
        own["rope.freq_base_swa"] = rotary["sliding_attention"]["rope_theta"]
        rotary = rotary["full_attention"]
    own["rope.freq_base"] = float(rotary["rope_theta"])
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        own[key] = getattr(config, key, None)
    if architecture in ("gemma2", "gemma3"):
        own["attention.sliding_window"] = config.sliding_window
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


def sentencepiece_metadata(trained: Any, *, prefix: bool) -> dict[str, Any]:
    """The tokenizer of a file, from a model of the package sentencepiece."""
    ids = range(trained.get_piece_size())
    kinds = {
        BYTE: trained.is_byte,
        CONTROL: trained.is_control,
        UNKNOWN: trained.is_unknown,
        USER_DEFINED: lambda id: trained.id_to_piece(id) == "<tool>",
        NORMAL: lambda _: True,
    }
    own = {
        "model": "llama",
        "pre": "default",
        "tokens": [trained.id_to_piece(id) for id in ids],
        "scores": [float(trained.get_score(id)) for id in ids],
        "token_type": [next(kind for kind, own in kinds.items() if own(id)) for id in ids],
        "merges": None,
        "bos_token_id": trained.bos_id(),
        "eos_token_id": trained.eos_id(),
        "unknown_token_id": trained.unk_id(),
        "add_bos_token": None,
        "add_space_prefix": prefix,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in own.items()}


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
        if architecture.startswith("gemma") and stem.endswith("norm"):
            values = values + 1
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
        if value is not None:
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


def tokens_of(reference: Reference, text: str) -> list[int]:
    body = {"content": text, "add_special": True, "parse_special": True}
    return reference.engine.post("/tokenize", body)["tokens"]


def real_texts(folder: Path, per_file: int) -> list[str]:
    """Excerpts of every readable file: books, tables, JSON; and of this package's source."""
    files = [*folder.rglob("*"), *Path(stillhouse.__file__).parent.rglob("*.py")]
    found = []
    for file in sorted(files):
        if file.suffix in (".txt", ".py", ".jsonl", ".md", ".tsv", ".json", ".csv"):
            with file.open(encoding="utf-8", errors="replace") as content:
                text = content.read(200_000)
            step = max(1, len(text) // per_file)
            found += [text[at : at + 600] for at in range(0, len(text), step)][:per_file]
    return [text for text in found if text]


def every_character() -> list[str]:
    characters = [chr(point) for point in range(1, 0x20000) if not 0xD800 <= point < 0xE000]
    groups = [characters[at : at + 64] for at in range(0, len(characters), 64)]
    return ["".join(f"a{c}b {c} 1{c}{c}" for c in group) for group in groups]

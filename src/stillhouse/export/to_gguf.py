"""GGUF, the format of llama.cpp and tools built on it, for GPT-2 and its students.

Names and values are those of llama.cpp's `gguf` package, except the key for suppressed tokens,
which the package does not have yet.
"""

import json
from collections.abc import Mapping
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

from stillhouse.export.exported import (
    TANH_GELU,
    CausalEngine,
    Exported,
    Format,
    Precision,
    Vocabulary,
    config_refusal,
)
from stillhouse.inference.causal_lm import CausalLM

FILE = "model.gguf"
TYPES = {
    "fp32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "fp16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "int8": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # as transformers stores them
SUPPRESSED = "tokenizer.ggml.suppress_tokens"
STOPS = 256  # added tokens that are tested for whether llama.cpp stops at them
# Settings of tokenizer.json that llama.cpp's tokenization assumes; "" and None are equal.
PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BPE: Mapping[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "byte_fallback": False,
    "ignore_merges": False,
}
TOKEN_FLAGS = ("lstrip", "rstrip", "single_word")


def _refusal(exported: Exported) -> str | None:
    loaded, ends = exported.loaded, exported.vocabulary.end_ids
    if not isinstance(loaded, CausalLM) or loaded.family.model_type != "gpt2":
        other = "" if isinstance(loaded, CausalLM) else "; take onnx"
        return f"only GPT-2 and its students are written as GGUF{other}"
    if reason := config_refusal(loaded.model.config, TANH_GELU):
        return reason
    if not 0 < len(ends) <= 3:
        return (
            "a GGUF file names one to three tokens that end a text, and the model has "
            f"{len(ends)}; set eos_token_id in its generation_config.json"
        )
    return _tokenizer_refusal(exported)


def _tokenizer_refusal(exported: Exported) -> str | None:
    """A setting of the tokenizer that a GGUF file cannot express; None if there is none."""
    tokenizer = exported.loaded.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["normalizer"] is not None:
        return (
            f"its tokenizer's normalizer, {state['normalizer']['type']}, has no place in the file"
        )
    for part, wanted in (("model", BPE), ("pre_tokenizer", PRE_TOKENIZER)):
        found = state[part] or {}
        for key, value in wanted.items():
            if (found.get(key) or None) != (value or None):
                return (
                    f"its tokenizer's {part} has the {key} {found.get(key)!r}; llama.cpp splits "
                    f"text as GPT-2 does, with {value!r}"
                )
    for token in tokenizer.added_tokens_decoder.values():
        for flag in TOKEN_FLAGS:
            if getattr(token, flag):
                return (
                    f"its added token {token.content!r} has {flag} set, which has no place in the "
                    "file; add the token without it"
                )
    if _added_around(exported) is None:
        return "its tokenizer adds more around a text than a token before and one after it"
    return None


def _added_around(exported: Exported) -> tuple[bool, bool] | None:
    """Whether the tokenizer adds a start token, and an end token, to each text; None if it adds
    anything else."""
    vocabulary, tokenizer = exported.vocabulary, exported.loaded.tokenizer
    ids, own = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    for begins, ends in product((False, True), repeat=2):
        first = [vocabulary.begin_id] if begins else []
        if ids == first + own + (list(vocabulary.end_ids[:1]) if ends else []):
            return begins, ends
    return None


def _write(exported: Exported, target: Path, precision: Precision) -> list[str]:
    config, kind = exported.model.config, TYPES[precision]
    # No general.name: llama.cpp strips spaces after special tokens where it holds "phi-3".
    writer = gguf.GGUFWriter(target / FILE, "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(kind[1])
    _add_tokenizer(writer, exported)
    kept = [
        name
        for name, values in _tensors(exported.model).items()
        if not _add_tensor(writer, name, values, kind[0])
    ]
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    if not kept:
        return []
    return [
        f"{len(kept)} matrices, such as {kept[0]}, stay in float32: their rows do not divide into "
        f"blocks of {gguf.GGML_QUANT_SIZES[kind[0]][0]}."
    ]


def _tensors(model: Any) -> dict[str, np.ndarray]:
    """Tensors by llama.cpp's names; the output matrix only if it is not tied to the embeddings."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    left_out = (".attn.bias", ".attn.masked_bias")  # constants
    if model.lm_head.weight is model.transformer.wte.weight:
        left_out += ("lm_head.weight",)
    found = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(left_out):
            stem, _, suffix = name.rpartition(".")
            values = tensor.float().numpy()
            values = values.T if name.endswith(TRANSPOSED) else values
            found[f"{names.get_name(stem)}.{suffix}"] = values
    return found


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType
) -> bool:
    """Matrices in the requested precision, if their rows are whole blocks of it (False if not);
    vectors and positions in float32, as llama.cpp requires."""
    fits = values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
    stays = values.ndim == 1 or name.startswith("position_embd")
    if stays or not fits:
        kind = gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    return stays or fits


def _add_tokenizer(writer: gguf.GGUFWriter, exported: Exported) -> None:
    vocabulary, tokenizer = exported.vocabulary, exported.loaded.tokenizer
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.names)
    writer.add_token_types([_token_type(id, vocabulary) for id in range(len(vocabulary))])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    add_end = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, id in zip(add_end, vocabulary.end_ids, strict=False):
        add(id)
    begin = vocabulary.begin_id
    writer.add_bos_token_id(vocabulary.end_ids[0] if begin is None else begin)  # by default 11
    around = _added_around(exported)
    assert around is not None, "refused before"
    writer.add_add_bos_token(around[0])
    writer.add_add_eos_token(around[1])
    if vocabulary.unused:
        writer.add_array(SUPPRESSED, sorted(vocabulary.unused))
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _token_type(id: int, vocabulary: Vocabulary) -> gguf.TokenType:
    if id in vocabulary.unused:
        return gguf.TokenType.UNUSED
    if id in vocabulary.special:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.USER_DEFINED if id in vocabulary.added else gguf.TokenType.NORMAL


def _open(exported: Exported, folder: Path) -> CausalEngine | None:
    try:
        from stillhouse.models.llama_cpp import LlamaCpp
    except ModuleNotFoundError:
        return None
    vocabulary = exported.vocabulary
    others = sorted(vocabulary.special | vocabulary.added)[:STOPS]
    return LlamaCpp(folder / FILE, exported.loaded.context, {*vocabulary.end_ids, *others})


GGUF = Format(
    ("fp16", "fp32", "int8"),
    _refusal,
    _write,
    _open,
    engine="xllamacpp",
    times=False,
)

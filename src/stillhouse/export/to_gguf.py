"""GGUF, the file of llama.cpp and what is built on it, for GPT-2 and its students.

The names and values that llama.cpp expects are those of its `gguf` package.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize
from transformers import AutoModelForCausalLM, PretrainedConfig

from stillhouse.export.exported import CausalEngine, Format, Precision
from stillhouse.generation.loaded import LoadedModel
from stillhouse.generation.reference import greedy_tokens, log_probabilities

FILE = "model.gguf"
TYPES = {
    "fp32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "fp16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "int8": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers keeps them so


def _refusal(loaded: LoadedModel) -> str | None:
    if loaded.is_causal and loaded.family.model_type == "gpt2":
        return None
    return "only GPT-2 and its students are written as GGUF; take onnx"


def _write(loaded: LoadedModel, source: Path, target: Path, precision: Precision) -> None:
    config, kind = loaded.model.config, TYPES[precision]
    writer = gguf.GGUFWriter(target / FILE, "gpt2")
    writer.add_name(source.name)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(kind[1])
    _add_tokenizer(writer, loaded)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for name, tensor in loaded.model.state_dict().items():
        if name.endswith((".attn.bias", ".attn.masked_bias", "lm_head.weight")):
            continue  # constants, and the embeddings again
        values = tensor.float().numpy()
        if name.endswith(TRANSPOSED):
            values = values.T
        stem, _, suffix = name.rpartition(".")
        _add_tensor(writer, f"{names.get_name(stem)}.{suffix}", values, kind[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType
) -> None:
    """Matrices in the precision asked for, if their rows are whole blocks of it; vectors and
    positions in float32, as llama.cpp wants them."""
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if values.ndim == 1 or name.startswith("position_embd") or values.shape[-1] % block:
        kind = gguf.GGMLQuantizationType.F32
    writer.add_tensor(name, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)


def _add_tokenizer(writer: gguf.GGUFWriter, loaded: LoadedModel) -> None:
    tokenizer, config = loaded.tokenizer, loaded.model.config
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert isinstance(tokens, list)
    unused = [f"[PAD{id}]" for id in range(len(tokens), config.vocab_size)]
    special = set(tokenizer.all_special_ids)
    kinds = [
        gguf.TokenType.CONTROL if id in special else gguf.TokenType.NORMAL
        for id in range(len(tokens))
    ] + [gguf.TokenType.UNUSED for _ in unused]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)


class _ReadBack:
    """The file as transformers reads it."""

    def __init__(self, folder: Path, config: PretrainedConfig) -> None:
        # (What transformers makes of its settings has 1,024 positions, however many it says.)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, config=config)
        self._model = model.eval()

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        return log_probabilities(self._model, ids)

    def generate(self, ids: Sequence[int], number: int) -> list[int]:
        return greedy_tokens(self._model, ids, number)


def _open(loaded: LoadedModel, folder: Path) -> CausalEngine:
    return _ReadBack(folder, loaded.model.config)


GGUF = Format(("fp16", "fp32", "int8"), _refusal, _write, _open, times=False)

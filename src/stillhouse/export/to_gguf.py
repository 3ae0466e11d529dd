"""GGUF, the format of llama.cpp and tools built on it, for the decoders that both compute.

Names, settings and layouts are those by which `models/from_gguf` reads such files.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from transformers import AutoConfig, PretrainedConfig

from stillhouse.export import gguf_tokenizer
from stillhouse.export.exported import (
    TANH_GELU,
    CausalEngine,
    Exported,
    Format,
    Precision,
    config_refusal,
)
from stillhouse.families.base import attention_widths
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.models.from_gguf.architectures import (
    ARCHITECTURES,
    Architecture,
    attention_scalar,
    in_llama_cpp_layout,
    settings_of,
)

FILE = "model.gguf"
TYPES = {
    "fp32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "fp16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "int8": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
# llama.cpp's name of each of transformers' architectures. Mistral is a Llama to it.
NAMES = {each.model_type: name for name, each in ARCHITECTURES.items()} | {"mistral": "llama"}
GELU = ("gpt2", "gemma2", "gemma3_text")
GEMMA_CAPS = {
    "gemma2": ("attn_logit_softcapping", "final_logit_softcapping"),
    "gemma3": (),
}
ROPE_FACTORS = "rope_freqs.weight"
SCALED_ROPE = ("llama",)  # where llama.cpp reads these factors


def _refusal(exported: Exported) -> str | None:
    loaded, config = exported.loaded, exported.loaded.model.config
    if not isinstance(loaded, CausalLM):
        return "only decoders are written as GGUF; take onnx"
    if config.model_type not in NAMES:
        return (
            f"of decoders this export writes {', '.join(sorted(NAMES))} as GGUF, and this is "
            f"{config.model_type}; {gguf_tokenizer.OTHERWISE}"
        )
    return (
        config_refusal(config, TANH_GELU if config.model_type in GELU else {"silu", "swish"})
        or _attention_refusal(loaded, config)
        or gguf_tokenizer.refusal(exported)
    )


def _attention_refusal(loaded: CausalLM, config: PretrainedConfig) -> str | None:
    """What llama.cpp computes differently in the attention of this architecture."""
    window, positions = loaded.family.window(config), loaded.family.num_positions(config)
    if ARCHITECTURES[NAMES[config.model_type]].windows:
        return _gemma_refusal(config)
    if window is not None and window < positions:
        return (
            f"its attention reads the last {window} of {positions} positions, and llama.cpp reads "
            "all of them in this architecture; set max_position_embeddings in its config.json to "
            f"{window}, for texts up to that length"
        )
    rotary = getattr(config, "rope_parameters", {})
    scaling, turned = rotary.get("rope_type"), rotary.get("partial_rotary_factor", 1.0)
    if turned != 1:
        return (
            f"its rotary positions turn a part of each head ({turned:g}), which this export does "
            f"not write; {gguf_tokenizer.OTHERWISE}"
        )
    if _rotary_scale(loaded.model) != 1:
        return (
            f"its rotary positions ({scaling}) scale attention too, which this export does not "
            f"write; {gguf_tokenizer.OTHERWISE}"
        )
    if _rope_factors(loaded.model) is not None and NAMES[config.model_type] not in SCALED_ROPE:
        return (
            f"its rotary positions are scaled ({scaling}), which this export writes for "
            f"{', '.join(SCALED_ROPE)} alone; {gguf_tokenizer.OTHERWISE}"
        )
    return None


def _gemma_refusal(config: PretrainedConfig) -> str | None:
    """What llama.cpp does not read from a file of a Gemma, but assumes."""
    number = config.num_hidden_layers
    usual = AutoConfig.for_model(config.model_type, num_hidden_layers=number).layer_types
    if config.layer_types != usual:
        return (
            "its layers with and without an attention window are not in the order that llama.cpp "
            f"assumes ({', '.join(usual[:6])}, ...); keep the teacher's order where you cut layers"
        )
    name, heads = NAMES[config.model_type], config.num_attention_heads
    size, share = attention_widths(config)[0] // heads, config.hidden_size // heads
    scalar = attention_scalar(name, number, head_size=size, share=share)
    if config.query_pre_attn_scalar != scalar:
        return (
            f"its query_pre_attn_scalar is {config.query_pre_attn_scalar}, and llama.cpp takes "
            f"{scalar}; {gguf_tokenizer.OTHERWISE}"
        )
    for key in GEMMA_CAPS[name]:
        if getattr(config, key) is None:
            return f"its {key} is None, and llama.cpp caps these logits; {gguf_tokenizer.OTHERWISE}"
    kinds = {own.get("rope_type") for own in _rotary_parts(config)}
    if kinds != {"default"}:
        return (
            f"its rotary positions are scaled ({', '.join(sorted(map(str, kinds)))}), which this "
            f"export writes for {', '.join(SCALED_ROPE)} alone; {gguf_tokenizer.OTHERWISE}"
        )
    return None


def _rotary_parts(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The rotary positions of all layers, or those of each kind of layer."""
    parts = config.rope_parameters
    return list(parts.values()) if "full_attention" in parts else [parts]


def _rotary_scale(model: Any) -> float:
    return getattr(getattr(model.base_model, "rotary_emb", None), "attention_scaling", 1.0)


def _rope_factors(model: Any) -> np.ndarray | None:
    """What llama.cpp divides the rotary frequencies by, in each pair of channels: theta^(-2i/D)
    over the model's own. None without rotary positions, and where all are 1."""
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None or ARCHITECTURES[NAMES[model.config.model_type]].windows:
        return None
    own, theta = rotary.inv_freq.double(), model.config.rope_parameters["rope_theta"]
    exponents = torch.arange(len(own), dtype=torch.float64) / len(own)
    factors = theta**-exponents / own
    if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5):
        return None
    return factors.float().numpy()


def _write(exported: Exported, target: Path, precision: Precision) -> list[str]:
    config, kind = exported.model.config, TYPES[precision]
    name = NAMES[config.model_type]
    # No general.name: llama.cpp strips spaces after special tokens where it holds "phi-3".
    writer = gguf.GGUFWriter(target / FILE, name)
    for key, value in settings_of(config, ARCHITECTURES[name]).items():
        if isinstance(value, float):
            writer.add_float32(f"{name}.{key}", value)
        else:
            writer.add_uint32(f"{name}.{key}", value)
    writer.add_file_type(kind[1])
    gguf_tokenizer.add_to(writer, exported)
    tensors = _tensors(exported.model, ARCHITECTURES[name])
    if (factors := _rope_factors(exported.model)) is not None:
        tensors[ROPE_FACTORS] = factors
    kept = [
        tensor
        for tensor, values in tensors.items()
        if not _add_tensor(writer, tensor, values, kind[0])
    ]
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    notes = gguf_tokenizer.notes(exported)
    if kept:
        notes.append(
            f"{len(kept)} matrices, such as {kept[0]}, stay in float32: their rows do not divide "
            f"into blocks of {gguf.GGML_QUANT_SIZES[kind[0]][0]}."
        )
    return notes


def _tensors(model: Any, architecture: Architecture) -> dict[str, np.ndarray]:
    """Tensors by llama.cpp's names; the output matrix only if it is not tied to the embeddings."""
    names = gguf.get_tensor_name_map(architecture.names, model.config.num_hidden_layers)
    found = {}
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        stored = f"{names.get_name(stem)}.{suffix}"
        values = parameter.detach().float().numpy()
        found[stored] = in_llama_cpp_layout(architecture, model.config, name, stored, values)
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


def _open(exported: Exported, folder: Path) -> CausalEngine | None:
    try:
        from stillhouse.models.llama_cpp import LlamaCpp, TableGelu
    except ModuleNotFoundError:
        return None
    table = TableGelu() if exported.model.config.model_type in GELU else None
    return LlamaCpp(folder / FILE, exported.loaded.context, table)


GGUF = Format(
    ("fp16", "fp32", "int8"),
    _refusal,
    _write,
    _open,
    engine="xllamacpp",
    times=False,
)

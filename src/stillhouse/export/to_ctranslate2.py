"""CTranslate2: fast on CPUs, for causal models and for the bodies of encoders."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import numpy as np
import torch
from ctranslate2.converters.transformers import (
    BertLoader,
    DistilBertLoader,
    GPT2Loader,
    RobertaLoader,
)
from transformers import GenerationConfig
from transformers.models.bert.modeling_bert import BertPooler

from stillhouse.export.exported import (
    CONFIG_KEYS,
    GELU,
    TANH_GELU,
    Exported,
    Format,
    Precision,
    config_refusal,
)
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.tokens.tokenizer import save_tokenizer

QUANTIZATION = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
LOADERS = {
    "gpt2": GPT2Loader,
    "bert": BertLoader,
    "distilbert": DistilBertLoader,
    "roberta": RobertaLoader,
}
VNNI = ("avx512_vnni", "avx_vnni")
ACTIVATIONS = TANH_GELU | GELU | {"quick_gelu", "relu", "silu", "swish"}


def _refusal(exported: Exported) -> str | None:
    loaded, model_type = exported.loaded, exported.model.config.model_type
    if model_type not in LOADERS:
        other = "; take onnx"
        if isinstance(loaded, CausalLM):
            other = "; take gguf" if model_type in CONFIG_KEYS else ""
        return (
            f"this export writes {', '.join(sorted(LOADERS))} for CTranslate2, and this is "
            f"{model_type}{other}"
        )
    if loaded.pipeline_task not in ("text-generation", "fill-mask", "feature-extraction"):
        return "CTranslate2 has no heads for tasks; take onnx"
    if isinstance(loaded, CausalLM) and not exported.vocabulary.end_ids:
        return (
            "CTranslate2 must know a token that ends a text; set eos_token_id in the model's "
            "generation_config.json"
        )
    return config_refusal(loaded.model.config, ACTIVATIONS)


@torch.no_grad()
def _spec(exported: Exported) -> Any:
    """The model in CTranslate2's form."""
    config = exported.model.config
    # The loaders read a key that transformers 5 no longer has: all positions are absolute.
    config.position_embedding_type = "absolute"
    is_causal = isinstance(exported.loaded, CausalLM)
    model: Any = exported.model if is_causal else exported.model.base_model
    lacks_pooler = config.model_type == "bert" and model.pooler is None
    if lacks_pooler:
        model.pooler = BertPooler(config)  # required by BERT's loader; not written
    spec = LOADERS[config.model_type]()(model, _tokens(exported))
    if lacks_pooler:
        del spec.pooler_dense, spec.pooler_activation
    if is_causal:
        spec.config.layer_norm_epsilon = config.layer_norm_epsilon
    return spec


def _tokens(exported: Exported) -> SimpleNamespace:
    """What CTranslate2's loaders read of a tokenizer."""
    vocabulary = exported.vocabulary
    end = vocabulary.names[vocabulary.end_ids[0]] if vocabulary.end_ids else None
    begin = None if vocabulary.begin_id is None else vocabulary.names[vocabulary.begin_id]
    # Byte-level tokenizers have no unknown token; CTranslate2 needs one.
    unknown: Any = exported.loaded.tokenizer.unk_token or end
    return SimpleNamespace(
        get_vocab=lambda: {name: id for id, name in enumerate(vocabulary.names)},
        bos_token=begin or end,
        eos_token=end,
        unk_token=unknown,
    )


def _write(exported: Exported, target: Path, precision: Precision) -> list[str]:
    spec = _spec(exported)
    spec.validate()
    spec.optimize(quantization=QUANTIZATION[precision])
    spec.save(str(target))
    save_tokenizer(exported.loaded.tokenizer, target)
    if not isinstance(exported.loaded, CausalLM):
        return []
    vocabulary = exported.vocabulary
    ends = [vocabulary.names[id] for id in vocabulary.end_ids]
    unused = [[vocabulary.names[id]] for id in sorted(vocabulary.unused)]
    GenerationConfig(
        bos_token_id=vocabulary.begin_id, eos_token_id=list(vocabulary.end_ids)
    ).save_pretrained(target)
    notes = []
    if len(ends) > 1:
        notes.append(
            f"CTranslate2's config.json holds one token that ends a text, {ends[0]!r}; give all of "
            f"them to generate_batch: end_token={ends!r}."
        )
    if unused:
        notes.append(
            f"{len(unused)} ids of the vocabulary are no token; keep generate_batch from them: "
            f"suppress_sequences=[{unused[0]!r}{', ...' if len(unused) > 1 else ''}]."
        )
    return notes


class _Causal:
    activation = None

    def __init__(self, exported: Exported, folder: Path) -> None:
        self._generator = ctranslate2.Generator(str(folder), intra_threads=torch.get_num_threads())
        self._names = exported.vocabulary.names
        self.end_ids = frozenset(exported.vocabulary.end_ids)
        self._unused = [[self._names[id]] for id in sorted(exported.vocabulary.unused)]

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        (found,) = self._generator.score_batch([self._named(ids)])
        return list(found.log_probs)

    def generate(self, ids: Sequence[int], number: int) -> list[int]:
        (found,) = self._generator.generate_batch(
            [self._named(ids)],
            max_length=number,
            min_length=number,
            include_prompt_in_result=False,
            sampling_topk=1,
            end_token=self._named(sorted(self.end_ids)),
            suppress_sequences=self._unused,
        )
        return list(found.sequences_ids[0])

    def _named(self, ids: Sequence[int]) -> list[str]:
        return [self._names[id] for id in ids]


class _Encoder:
    def __init__(self, folder: Path) -> None:
        self._encoder = ctranslate2.Encoder(str(folder), intra_threads=torch.get_num_threads())

    def outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        lengths = inputs["attention_mask"].sum(1).tolist()

        def rows(name: str) -> list[list[int]]:
            pairs = zip(inputs[name].tolist(), lengths, strict=True)
            return [row[:length] for row, length in pairs]

        types = rows("token_type_ids") if "token_type_ids" in inputs else None
        found = self._encoder.forward_batch(rows("input_ids"), token_type_ids=types)
        return {"last_hidden_state": np.array(found.last_hidden_state, np.float32)}


def _remedy(precision: Precision) -> str | None:
    """oneDNN's int8 products overflow on x86 CPUs without VNNI: they add two products of 8 bits in
    16. MKL's, which CTranslate2 takes by itself on Intel's CPUs alone, do not."""
    flags, is_set = torch.cpu.get_capabilities(), "CT2_USE_MKL" in os.environ
    if precision != "int8" or is_set or not flags.get("avx2") or any(map(flags.get, VNNI)):
        return None
    return (
        "This CPU has no VNNI, without which int8 products of oneDNN overflow. Set CT2_USE_MKL=1, "
        "here and wherever the files are used on such a CPU."
    )


CTRANSLATE2 = Format(
    ("int8", "fp32", "fp16"),
    _refusal,
    _write,
    lambda exported, folder: (
        _Causal(exported, folder) if isinstance(exported.loaded, CausalLM) else _Encoder(folder)
    ),
    engine="ctranslate2",
    remedy=_remedy,
)

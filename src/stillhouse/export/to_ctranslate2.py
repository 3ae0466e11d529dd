"""CTranslate2: fast on processors, for models that continue text and for the bodies of encoders."""

import json
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import numpy as np
import torch
from ctranslate2.converters import TransformersConverter

from stillhouse.export.exported import CausalEngine, EncoderEngine, Format, Precision
from stillhouse.generation.loaded import LoadedModel

QUANTIZATION = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
COPIED = ["tokenizer.json", "tokenizer_config.json"]


def _refusal(loaded: LoadedModel) -> str | None:
    if loaded.pipeline_task in ("text-generation", "fill-mask", "feature-extraction"):
        return None
    return "CTranslate2 has no heads for tasks; take onnx"


def _write(loaded: LoadedModel, source: Path, target: Path, precision: Precision) -> None:
    del loaded  # the converter reads the folder itself
    converter = TransformersConverter(str(source), copy_files=COPIED)
    converter.convert(str(target), quantization=QUANTIZATION[precision], force=True)
    path = target / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("unk_token", "") is None:  # byte-level tokenizers have none; CTranslate2 must
        config["unk_token"] = config["eos_token"]
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class _Causal:
    def __init__(self, loaded: LoadedModel, folder: Path) -> None:
        self._generator = ctranslate2.Generator(str(folder), intra_threads=torch.get_num_threads())
        self._tokenizer = loaded.tokenizer

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        (found,) = self._generator.score_batch([self._names(ids)])
        return list(found.log_probs)

    def generate(self, ids: Sequence[int], number: int) -> list[int]:
        (found,) = self._generator.generate_batch(
            [self._names(ids)],
            max_length=number,
            min_length=number,
            include_prompt_in_result=False,
            sampling_topk=1,
        )
        return list(found.sequences_ids[0])

    def _names(self, ids: Sequence[int]) -> list[str]:
        names = self._tokenizer.convert_ids_to_tokens(list(ids))
        assert isinstance(names, list)
        return names


class _Encoder:
    def __init__(self, folder: Path) -> None:
        self._encoder = ctranslate2.Encoder(str(folder), intra_threads=torch.get_num_threads())

    def outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        lengths = inputs["attention_mask"].sum(1).tolist()
        rows = zip(inputs["input_ids"].tolist(), lengths, strict=True)
        found = self._encoder.forward_batch([row[:length] for row, length in rows])
        return {"last_hidden_state": np.array(found.last_hidden_state, np.float32)}


def _open(loaded: LoadedModel, folder: Path) -> CausalEngine | EncoderEngine:
    return _Causal(loaded, folder) if loaded.is_causal else _Encoder(folder)


CTRANSLATE2 = Format(("int8", "fp32", "fp16"), _refusal, _write, _open)

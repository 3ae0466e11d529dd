"""ONNX, for encoders with any head.

A model is traced as transformers runs it, so every key of its configuration is carried over.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from stillhouse.export.exported import CONFIG_KEYS, Exported, Format, Precision
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.models.folder_check import reads_token_types
from stillhouse.tokens.tokenizer import save_tokenizer

FILE = "model.onnx"
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")

logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about torchvision


def _refusal(exported: Exported) -> str | None:
    if isinstance(exported.loaded, CausalLM):
        other = "; take gguf" if exported.model.config.model_type in CONFIG_KEYS else ""
        return f"a causal model needs a KV cache, which this export does not write{other}"
    return None


class _Outputs(nn.Module):
    """The model as a function of tensors, to tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        types = {"token_type_ids": token_type_ids[0]} if token_type_ids else {}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(found[name] for name in OUTPUTS if name in found)


def _write(exported: Exported, target: Path, _: Precision) -> list[str]:
    """In float32 only: for quantized MiniLM see docs/results/experiments.md."""
    model, ids = exported.model, torch.zeros((2, 8), dtype=torch.long)
    outputs = [name for name in OUTPUTS if name in model(input_ids=ids)]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if reads_token_types(model.config):
        inputs["token_type_ids"] = torch.zeros_like(ids)  # a separate tensor
    axes = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", max=exported.loaded.context),
    }
    shapes = (axes, axes, *([(axes,)] if len(inputs) == 3 else []))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inputs share the names of their axes, as intended
        torch.onnx.export(
            _Outputs(model).eval(),
            tuple(inputs.values()),
            str(target / FILE),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    save_tokenizer(exported.loaded.tokenizer, target)
    model.config.save_pretrained(target)
    return []


class _Encoder:
    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            str(folder / FILE), options, providers=["CPUExecutionProvider"]
        )

    def outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in self._session.get_outputs()]
        found = self._session.run(names, inputs)
        return {name: np.asarray(each) for name, each in zip(names, found, strict=True)}


ONNX = Format(
    ("fp32",),
    _refusal,
    _write,
    lambda _, folder: _Encoder(folder),
    engine="onnxruntime",
)

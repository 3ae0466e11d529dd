"""ONNX, for encoders: with their heads, whatever they were made for."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from stillhouse.export.exported import EncoderEngine, Format, Precision
from stillhouse.generation.loaded import LoadedModel

FILE = "model.onnx"
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")


def _refusal(loaded: LoadedModel) -> str | None:
    if loaded.is_causal:
        return "a model that continues text needs a cache, which this has not; take ctranslate2"
    return None


class _Outputs(nn.Module):
    """The model as a function of tensors, to tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return tuple(found[name] for name in OUTPUTS if name in found)


def _write(loaded: LoadedModel, source: Path, target: Path, precision: Precision) -> None:
    del source, precision  # float32 alone: what quantizing did to MiniLM is in docs/experiments.md
    ids = torch.zeros((2, 8), dtype=torch.long)
    names = [name for name in OUTPUTS if name in loaded.model(input_ids=ids)]
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=loaded.context)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that two inputs share their axes' names, as they must
        torch.onnx.export(
            _Outputs(loaded.model).eval(),
            (ids, torch.ones_like(ids)),
            str(target / FILE),
            input_names=["input_ids", "attention_mask"],
            output_names=names,
            dynamic_shapes=(axes, axes),
            external_data=False,
            verbose=False,
        )
    loaded.tokenizer.save_pretrained(target)
    loaded.model.config.save_pretrained(target)


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


def _open(loaded: LoadedModel, folder: Path) -> EncoderEngine:
    del loaded
    return _Encoder(folder)


ONNX = Format(("fp32",), _refusal, _write, _open)

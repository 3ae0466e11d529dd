"""Interfaces of export formats and of their engines: enough to verify an exported model.

Axes: B texts, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from torch import nn

from stillhouse.export.plain import Exported

Precision = Literal["fp32", "fp16", "int8"]


@runtime_checkable
class CausalEngine(Protocol):
    """A causal model in another engine."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens at which the engine ends a text."""
        ...

    @property
    def activation(self) -> nn.Module | None:
        """The engine's variant of the model's activation function; None if it is the same."""
        ...

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Log-probability of each token but the first, given those before it; in nats."""
        ...

    def generate(self, ids: Sequence[int], number: int) -> list[int]:
        """Greedy next tokens, end-of-text tokens excluded."""
        ...

    def tokens_of(self, text: str) -> list[int] | None:
        """The engine's own tokenization; None if it has no tokenizer."""
        ...

    def text_of(self, ids: Sequence[int]) -> str | None:
        """The engine's own decoding; None if it has no tokenizer."""
        ...


@runtime_checkable
class EncoderEngine(Protocol):
    """An encoder in another engine."""

    def outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs for `input_ids`, `attention_mask` and, if the model has them, `token_type_ids`
        (int64, B x T; right padding), by transformers' names."""
        ...


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        precisions: Supported precisions; the first is the default.
        refusal: Why the format does not support a model; None if it does.
        write: Writes a model into an empty folder; returns notes for the user.
        open: Loads the written files into the engine; None if that is not installed.
        engine: The engine's library.
        times: Whether to time the engine: whether the library is used for serving.
    """

    precisions: tuple[Precision, ...]
    refusal: Callable[[Exported], str | None]
    write: Callable[[Exported, Path, Precision], list[str]]
    open: Callable[[Exported, Path], CausalEngine | EncoderEngine | None]
    engine: str
    times: bool = True

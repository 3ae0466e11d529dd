"""What every format can be asked, once it is written: enough to compare it with the model.

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
    """A model that continues text, in another engine."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens at which the engine ends a text."""
        ...

    @property
    def activation(self) -> nn.Module | None:
        """What the engine computes for the model's activation function; None for just that."""
        ...

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Of each token but the first, given those before it; in nats."""
        ...

    def generate(self, ids: Sequence[int], number: int) -> list[int]:
        """The likeliest next tokens that do not end the text, one after the other."""
        ...

    def tokens_of(self, text: str) -> list[int] | None:
        """The engine's own tokens of a text; None where it is given tokens."""
        ...

    def text_of(self, ids: Sequence[int]) -> str | None:
        """The engine's own text of tokens; None where it gives tokens."""
        ...


@runtime_checkable
class EncoderEngine(Protocol):
    """A model that reads whole texts, in another engine."""

    def outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the model gives for `input_ids`, `attention_mask` and, if it reads them,
        `token_type_ids` (int64, B x T; padding at the end), by transformers' names."""
        ...


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        precisions: What it can be written in; the first where nothing is asked for.
        refusal: Why a model cannot be written so; None where it can.
        write: Writes a model into an empty folder; returns what a user should know of it.
        open: Loads what was written into its engine; None where that is not installed.
        engine: The library that does.
        times: Whether that library is one people serve with, so that its speed means something.
    """

    precisions: tuple[Precision, ...]
    refusal: Callable[[Exported], str | None]
    write: Callable[[Exported, Path, Precision], list[str]]
    open: Callable[[Exported, Path], CausalEngine | EncoderEngine | None]
    engine: str
    times: bool = True

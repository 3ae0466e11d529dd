"""What every format can be asked, once it is written: enough to hold it against the model.

Axes: B texts, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from stillhouse.generation.loaded import LoadedModel

Precision = Literal["fp32", "fp16", "int8"]


@runtime_checkable
class CausalEngine(Protocol):
    """A model that continues text, in another engine."""

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Of each token but the first, given those before it; in nats."""
        ...

    def generate(self, ids: Sequence[int], number: int) -> list[int]:
        """The likeliest next tokens, one after the other."""
        ...


@runtime_checkable
class EncoderEngine(Protocol):
    """A model that reads whole texts, in another engine."""

    def outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the model gives for `input_ids` and `attention_mask` (int64, B x T; padding at the
        end), by the names of transformers' outputs."""
        ...


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        precisions: What it can be written in; the first where nothing is asked for.
        refusal: Why a model cannot be written so; None where it can.
        write: Writes a model (and the folder it is from) into an empty folder.
        open: Loads what was written of a model into its engine.
        times: Whether that engine is one people serve with, so that its speed means something.
    """

    precisions: tuple[Precision, ...]
    refusal: Callable[[LoadedModel], str | None]
    write: Callable[[LoadedModel, Path, Path, Precision], None]
    open: Callable[[LoadedModel, Path], CausalEngine | EncoderEngine]
    times: bool = True

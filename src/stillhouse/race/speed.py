"""Decoding speeds of students, measured on this machine.

One sequence, greedy, by the engine of `generate`: `NEW_TOKENS` tokens, one a step, after a prompt
of one. Models take turns, and the median of the turns counts. They have the precision that
`generate` chooses for the teacher by itself (`inference.quantization`).
"""

import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.registry import family_of
from stillhouse.inference.engine.kv_cache import Chunk, SlottedModel
from stillhouse.inference.quantization import Precision, load_at_precision, times_of, to_precision
from stillhouse.runs.manifest import Inputs, is_up_to_date, verify
from stillhouse.stages.context import ModelRef
from stillhouse.student.axes import sizes_of
from stillhouse.training.device import pick_device

NEW_TOKENS = 32
TURNS = 3  # of models of random weights, after one to warm up


def decoder(model: PreTrainedModel) -> Callable[[], int]:
    """A function that decodes `NEW_TOKENS` tokens, and returns their number."""
    slots = SlottedModel(family_of(model.config), model, 1)

    def decode() -> int:
        slot, token = slots.open(), 0
        number = min(NEW_TOKENS, slots.context - 1)
        for _ in range(number):
            token = int(slots.forward([Chunk(slot, [token])])[-1].argmax())
        slots.close(slot)
        return number

    return decode


@dataclass
class DecodingTimes:
    """Seconds of a decoded token of models of random weights, by their shape; each is measured
    once.

    Attributes:
        reason: Why the models have this precision.
    """

    precision: Precision
    reason: str
    seconds: dict[str, float] = field(default_factory=dict)

    def of(self, configs: Sequence[PretrainedConfig]) -> list[float]:
        """Seconds of a token of each, those that are not known measured in turns."""
        keys = [_shape(config) for config in configs]
        by_key = dict(zip(keys, configs, strict=True))
        unknown = {key: config for key, config in by_key.items() if key not in self.seconds}
        works = {key: decoder(self._random_model(config)) for key, config in unknown.items()}
        turns: dict[str, list[float]] = {key: [] for key in works}
        for turn in range(1 + TURNS):
            for key, work in works.items():
                started = time.perf_counter()
                number = work()
                if turn:
                    turns[key].append((time.perf_counter() - started) / number)
        self.seconds |= {key: statistics.median(found) for key, found in turns.items()}
        return [self.seconds[key] for key in keys]

    def _random_model(self, config: PretrainedConfig) -> PreTrainedModel:
        model = getattr(transformers, family_of(config).model_class)(config).eval()
        return self.converted(model)

    def converted(self, model: PreTrainedModel) -> PreTrainedModel:
        """A model in the precision, in place."""
        times = times_of(model) if self.precision == "int8" else None
        to_precision(model, self.precision, times=times)
        return model.to(device=pick_device())  # pyright: ignore[reportCallIssue]

    @property
    def precision_facts(self) -> dict[str, str]:
        """The precision, and why."""
        return {"precision": self.precision, "reason": self.reason}


def decoding_times(
    config: PretrainedConfig, teacher: ModelRef | None, saved: Path | None
) -> DecodingTimes:
    """The times of students of a teacher, those of a run once it has some; in one process each is
    measured once.

    Args:
        teacher: None where it is still to be trained: times are then those of float32.
        saved: The file of the run's times.

    Raises:
        RecipeError: the teacher does not generate text.
        RunError: the file is damaged.
    """
    if family_of(config).language_modeling != "causal":
        raise RecipeError(
            "student.budget.tokens_per_second is a decoding speed, but a "
            f"{config.model_type} model fills masks. Give parameters or memory instead."
        )
    if saved is not None and is_up_to_date(saved, times_inputs(teacher)):
        verify(saved)
        return DecodingTimes(**json.loads(saved.read_text(encoding="utf-8")))
    return _times(config.to_json_string(), teacher)


def times_inputs(teacher: ModelRef | None) -> Inputs:
    """All that the times of a run depend on, but for the machine."""
    settings = {"new_tokens": NEW_TOKENS, "device": pick_device().type}
    return Inputs("decoding-times", settings, {"teacher": teacher.fingerprint if teacher else ""})


@functools.cache
def _times(config: str, teacher: ModelRef | None) -> DecodingTimes:
    if teacher is None:
        return DecodingTimes("fp32", "the teacher is still to be trained")
    found = load_at_precision(teacher.folder, "auto", device=pick_device())
    return DecodingTimes(cast(Precision, found.precision), found.reason)  # no GGUF file


def _shape(config: PretrainedConfig) -> str:
    """What the speed of a teacher's students depends on."""
    kind = f"{config.model_type}, {config.vocab_size} tokens, {config.num_hidden_layers} layers"
    return f"{kind}, {sizes_of(config)}"

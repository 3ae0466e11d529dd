"""Distillation settings of a recipe, and its presets."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.section import Section
from stillhouse.tokens.settings import CacheKind
from stillhouse.training.settings import PretrainingRecipe


class CacheRecipe(Section):
    """A cache of the teacher's outputs: `size` tokens of each row's distribution."""

    cache: CacheKind
    """What is stored of each row: the most likely tokens and the total mass of all others, which
    the loss compares as one more outcome (a lower bound of the exact loss); or an unbiased sample.
    """
    size: PositiveInt = 32
    """Tokens stored per row."""


def _kind_of_teacher_outputs(value: object) -> str:
    return "cached" if isinstance(value, (Mapping, CacheRecipe)) else "named"


# The terms that a teacher cache holds, beside those that need no teacher.
CACHED_LOSSES = tuple(name for name, divergence in DIVERGENCES.items() if divergence.cacheable)

DEFAULT_PRESET = "fast"

PRESETS: dict[str, dict[str, Any]] = {
    # What reached a given validation loss soonest (docs/results/experiments.md, "Time to quality").
    "fast": {
        "temperature": 1.0,
        "losses": {
            "soft_target": {"weight": 5.0, "rows": "predicted"},
            "language_modeling": {"weight": 1.0},
            "hidden_cosine": {"weight": 20.0, "rows": "predicted"},
        },
        "dropout": False,
    },
    # DistilBERT's weights, confirmed by its author (huggingface/transformers#2013).
    "classic": {
        "temperature": 2.0,
        "losses": {
            "soft_target": {"weight": 5.0},
            "language_modeling": {"weight": 2.0},
            "hidden_cosine": {"weight": 1.0},
        },
    },
}


def preset_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a distillation section starts from.

    An unknown preset gives the default's, so that its name is the one mistake reported.
    """
    return PRESETS.get(str(section.get("preset", DEFAULT_PRESET)), PRESETS[DEFAULT_PRESET])


ModelName = Literal["student", "control", "control_same_time"]

CONTROLS: dict[str, tuple[ModelName, ...]] = {
    "same_tokens": ("control",),
    "both": ("control", "control_same_time"),
    "none": (),
}


class DistillationRecipe(PretrainingRecipe):
    """Distillation of the student, and the control it is compared with."""

    preset: Literal["fast", "classic"] = DEFAULT_PRESET
    """Values that temperature, losses and dropout start from. `losses` in a recipe replaces the
    preset's; `--set distillation.losses.NAME='{weight: W}'` adds one to them."""
    temperature: PositiveFloat
    """Temperature of both models' softmax in the divergences."""
    losses: LossesRecipe
    """Terms of the objective."""
    teacher_outputs: Annotated[
        Annotated[Literal["live"], Tag("named")] | Annotated[CacheRecipe, Tag("cached")],
        Discriminator(_kind_of_teacher_outputs),
    ] = "live"
    """Compute the teacher's outputs while training, or read them from a cache."""
    teacher_sharded: bool = False
    """Shard the live teacher's layers over the ranks."""
    control: Literal["same_tokens", "same_time", "both", "none"] = "same_tokens"
    """Control trained without a teacher: on the same tokens, for the same time, or both."""

    @property
    def models(self) -> tuple[ModelName, ...]:
        """The models that are trained, in order."""
        return ("student", *CONTROLS[self.control])

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_preset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {**preset_of(data), **data}

    @model_validator(mode="after")
    def _check_control(self) -> Any:
        if self.control not in CONTROLS:
            raise ValueError(
                "control is same_time, which needs the step times of the control of the same "
                "tokens. Set it to both"
            )
        return self

    @model_validator(mode="after")
    def _a_cache_serves_the_losses(self) -> Any:
        if isinstance(self.teacher_outputs, CacheRecipe):
            served = {*CACHED_LOSSES, "language_modeling"}
            if unserved := [name for name in self.losses.active() if name not in served]:
                raise ValueError(
                    f"losses.{unserved[0]} needs the teacher's whole distribution, which a cache "
                    "does not hold; set teacher_outputs to live, or take "
                    f"{', '.join(CACHED_LOSSES)}"
                )
        return self

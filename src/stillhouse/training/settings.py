"""Training settings of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from stillhouse.section import Fraction, Section, recipe_part


class OptimizerRecipe(Section):
    """AdamW, with the 2019 settings as defaults."""

    name: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 5e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 5.0


class ScheduleRecipe(Section):
    """How the learning rate rises (warm-up) and falls (to zero) over the optimizer steps."""

    name: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05


class CheckpointRecipe(Section):
    """How often training commits its state, and how many states stay on disk."""

    every_steps: PositiveInt = 500
    keep_last: Annotated[int, Field(ge=2)] = 2
    keep_every_steps: PositiveInt | None = None  # of these steps every state stays


class TrainingRecipe(Section):
    """What every training run needs, with a teacher or without."""

    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    micro_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    epochs: PositiveInt = 3
    dropout: bool = True  # as the model's configuration says, or off while it learns
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    sharded: bool = False  # over the ranks: weights, gradients, optimizer; else each has all
    activation_checkpointing: bool = False  # compute activations twice rather than keep them
    checkpoint: CheckpointRecipe = CheckpointRecipe()


class PretrainingRecipe(TrainingRecipe):
    """Training on text, whose steps are counted in tokens."""

    tokens_per_step: PositiveInt = 262_144
    max_tokens: PositiveInt | None = None


# Of a training's settings, those that say how often it is committed and where it runs.
PLACING = {"checkpoint", "sharded", "teacher_sharded", "activation_checkpointing"}


def result_settings(training: TrainingRecipe) -> dict[str, Any]:
    """The settings of a training that shape its result: all but how often it is committed, and
    how it is spread over the ranks and memory."""
    return {key: value for key, value in recipe_part(training).items() if key not in PLACING}

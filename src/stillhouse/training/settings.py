"""Training settings of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from stillhouse.section import Fraction, Section, recipe_part

SinkName = Literal["tensorboard", "trackio", "wandb", "mlflow"]


class OptimizerRecipe(Section):
    """AdamW, with the 2019 settings as defaults."""

    name: Literal["adamw"] = "adamw"
    """Optimizer."""
    learning_rate: PositiveFloat = 5e-4
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """Decay rates of AdamW's moments."""
    eps: PositiveFloat = 1e-6
    """Term that stabilizes AdamW's division."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat = 5.0
    """Norm that gradients are clipped to."""


class ScheduleRecipe(Section):
    """Linear warm-up of the learning rate, then the decay of its shape."""

    name: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the decay after warm-up."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of the steps over which the learning rate rises."""


class CheckpointRecipe(Section):
    """Frequency of checkpoints, and how many are kept."""

    every_steps: PositiveInt = 500
    """Optimizer steps between checkpoints."""
    keep_last: Annotated[int, Field(ge=2)] = 2
    """Number of latest checkpoints kept."""
    keep_every_steps: PositiveInt | None = None
    """Keep every checkpoint at multiples of this number of steps."""


class TrainingRecipe(Section):
    """Settings of every training run, with a teacher or without."""

    optimizer: OptimizerRecipe = OptimizerRecipe()
    """Optimizer."""
    schedule: ScheduleRecipe = ScheduleRecipe()
    """Learning rate schedule."""
    micro_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens of a micro-batch; auto fits it to memory."""
    epochs: PositiveInt = 3
    """Passes over the training data."""
    dropout: bool = True
    """Use the dropout of the model's configuration, or none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of matrix products: auto picks bf16 where the device is faster with it."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the model; auto compiles on a GPU."""
    sharded: bool = False
    """Shard weights, gradients and optimizer state over the ranks."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    """How often training is checkpointed."""


class PretrainingRecipe(TrainingRecipe):
    """Training on text; steps are measured in tokens."""

    tokens_per_step: PositiveInt = 262_144
    """Tokens of one optimizer step, over all ranks."""
    max_tokens: PositiveInt | None = None
    """Stop after this number of tokens."""


# Settings that change where a training runs and what it commits, not its result.
PLACEMENT = {"checkpoint", "sharded", "teacher_sharded", "activation_checkpointing"}


def result_settings(training: TrainingRecipe) -> dict[str, Any]:
    """The settings that shape a training's result: all but `PLACEMENT`."""
    return {key: value for key, value in recipe_part(training).items() if key not in PLACEMENT}

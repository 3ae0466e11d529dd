"""A training job: a model, its data and objective, its length, checkpoints and metrics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.tokens.batches import SequenceSource, StepBatches
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.cost import Roofline, sequences_per_step
from stillhouse.training.device import micro_batch_sequences
from stillhouse.training.metrics import MetricsFile
from stillhouse.training.progress import Progress
from stillhouse.training.ranks import ALONE, Ranks
from stillhouse.training.settings import PretrainingRecipe, TrainingRecipe


@runtime_checkable
class Objective(Protocol):
    """Sums of weighted terms over a micro-batch."""

    @property
    def weights(self) -> dict[str, float]: ...

    @property
    def rows(self) -> Mapping[str, str]: ...

    def __call__(
        self, model: PreTrainedModel, batch: Any, coefficients: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


@dataclass(frozen=True)
class TrainingJob:
    """One model to train."""

    name: str
    model: PreTrainedModel
    objective: Objective
    batches: StepBatches
    recipe: TrainingRecipe
    checkpoints: Checkpoints
    metrics: MetricsFile
    device: torch.device
    roofline: Roofline
    ranks: Ranks = ALONE
    teacher_sharded: bool = False
    section: str = "distillation"  # of the recipe, where the training's settings are

    @property
    def label(self) -> str:
        """Its name in progress and logs."""
        return f"{self.name} (seed {self.batches.seed})"

    @property
    def gathers(self) -> bool:
        """Whether ranks gather layers inside a pass, and so wait for each other."""
        return self.ranks.size > 1 and (self.recipe.sharded or self.teacher_sharded)

    def micro_batch_size(self, progress: Progress) -> int:
        """Sequences of a micro-batch: as few micro-batches as memory allows, of about equal
        size."""
        at_most = progress.micro_batch_sequences or micro_batch_sequences(
            self.recipe.micro_batch_tokens, self.device, self.batches.source.sequence_length
        )
        of_a_rank = -(-self.batches.sequences_per_step // self.ranks.size)
        rounds = -(-of_a_rank // at_most)
        return -(-of_a_rank // rounds)

    def is_committed_at(self, step: int) -> bool:
        """Whether the state after this step becomes a checkpoint."""
        return step % self.recipe.checkpoint.every_steps == 0 or step in self.checkpoints.keep_steps

    def facts(self, progress: Progress) -> dict[str, int | float]:
        """The facts of the finished training, for its manifest."""
        tokens_per_second = progress.tokens / progress.seconds / self.ranks.size
        return {
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "steps": progress.step,
            "skipped_steps": progress.skipped_steps,
            **self.roofline.facts(tokens_per_second),
        }


def plan_batches(
    source: SequenceSource, recipe: PretrainingRecipe, *, seed: int, num_steps: int | None = None
) -> StepBatches:
    """The batches of a run: `epochs` or `max_tokens` of the recipe, or exactly `num_steps`
    steps."""
    per_step = sequences_per_step(recipe, source.sequence_length)
    num_samples = recipe.epochs * source.num_sequences
    if recipe.max_tokens is not None:
        num_samples = math.ceil(recipe.max_tokens / source.sequence_length)
    if num_steps is not None:
        num_samples = num_steps * per_step
    return StepBatches(source, seed=seed, sequences_per_step=per_step, num_samples=num_samples)

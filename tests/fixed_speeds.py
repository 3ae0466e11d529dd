"""Fixed speeds, for tests of the arithmetic of estimates."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from stillhouse.estimate.speeds import (
    LanguageTraining,
    MeasuredSpeeds,
    TaskTraining,
    TrainingSpeed,
)
from stillhouse.recipe import Recipe
from stillhouse.tasks.encoded import EncodedExample
from stillhouse.tokens.settings import TokensRecipe


class FixedSpeeds(MeasuredSpeeds):
    """One million FLOPs per second, whatever is computed, and free optimizers."""

    rate = 1e6

    def training(self, training: LanguageTraining) -> TrainingSpeed:
        return TrainingSpeed(self.rate, 1e30)

    def task_training(self, training: TaskTraining) -> TrainingSpeed:
        return TrainingSpeed(self.rate, 1e30)

    def caching(self, recipe: Recipe, teacher: PretrainedConfig) -> float:
        return self.rate

    def scoring(self, model: PretrainedConfig, tokens: TokensRecipe) -> float:
        return self.rate

    def generation(self, model: PretrainedConfig) -> float:
        return 1_000.0

    def answering(
        self,
        training: TaskTraining,
        examples: Sequence[Any],
        encoded: Sequence[Sequence[EncodedExample]],
    ) -> float:
        return self.rate

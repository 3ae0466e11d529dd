"""Evaluation settings of a recipe."""

from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator

from stillhouse.section import Name, Section
from stillhouse.tasks.settings import NamedBiasTask, TemplatesTask, ZeroShotTask


class ZeroShotRecipe(Section):
    """A data set that models are scored on without training for it."""

    task: ZeroShotTask
    """Task by its name or kind, or its kind with settings."""
    data: str
    """Labeled examples: a file or an `hf://` dataset."""
    num_examples: PositiveInt | None = None
    """Number of examples to score, the first of the file; by default all."""


class BiasRecipe(Section):
    """Sentences whose probabilities show a model's bias."""

    task: NamedBiasTask
    """Data set: `crows_pairs`, `stereoset`, `winobias`, `winogender` or `bold`; or `templates`."""
    data: str = Field(default="", validate_default=True)
    """File of the data set as published, or an `hf://` dataset; for `templates` by default those of
    the package."""
    num_examples: PositiveInt | None = None
    """Number of comparisons, the first of the file; by default all."""

    @field_validator("data")
    @classmethod
    def _of_the_package(cls, data: str, info: Any) -> str:
        task = info.data.get("task")
        if data or task is None:
            return data
        if not isinstance(task, TemplatesTask):
            raise ValueError("is missing: give the file of the data set")
        return task.kind


class EvaluationRecipe(Section):
    """Measurements: perplexity on the validation split or on files, and speed."""

    perplexity: Annotated[list[str], Field(min_length=1)] = Field(default=["validation"])
    """Texts to compute perplexity on: `validation` or files."""
    zero_shot: dict[Name, ZeroShotRecipe] = Field(default={})
    """Data sets to score the causal models on without training for them, by name."""
    bias: dict[Name, BiasRecipe] = Field(default={})
    """Data sets to measure the models' bias on, by name."""
    speed: bool = True
    """Measure forward and generation throughput."""


def data_sets_of(recipe: EvaluationRecipe) -> dict[str, ZeroShotRecipe | BiasRecipe]:
    """The data sets that models are scored on, by the key of their `data` in a recipe."""
    sections = {"zero_shot": recipe.zero_shot, "bias": recipe.bias}
    return {
        f"evaluation.{section}.{name}.data": each
        for section, sets in sections.items()
        for name, each in sets.items()
    }

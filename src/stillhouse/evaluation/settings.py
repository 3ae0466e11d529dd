"""Evaluation settings of a recipe."""

from typing import Annotated, get_args

from pydantic import (
    Field,
    PositiveInt,
    field_validator,
)

from stillhouse.section import Name, Section
from stillhouse.tasks.settings import NAMED_TASKS, NamedTaskRecipe, TaskRecipe, ZeroShotTask

ZERO_SHOT_KINDS = [each.model_fields["kind"].default for each in get_args(ZeroShotTask)]
ZERO_SHOT_NAMES = [name for name, each in NAMED_TASKS.items() if each["kind"] in ZERO_SHOT_KINDS]


class ZeroShotRecipe(Section):
    """A data set that models are scored on without training for it."""

    task: NamedTaskRecipe
    """Task by its name or kind, or its kind with settings."""
    data: str
    """Labeled examples: a file or an `hf://` dataset."""
    num_examples: PositiveInt | None = None
    """Number of examples to score, the first of the file; by default all."""

    @field_validator("task")
    @classmethod
    def _is_zero_shot(cls, task: TaskRecipe) -> TaskRecipe:
        if task.kind not in ZERO_SHOT_KINDS:
            raise ValueError(
                f"a model is trained for {task.kind}; zero-shot tasks are "
                f"{', '.join([*ZERO_SHOT_NAMES, *ZERO_SHOT_KINDS])}"
            )
        return task


class EvaluationRecipe(Section):
    """Measurements: perplexity on the validation split or on files, and speed."""

    perplexity: Annotated[list[str], Field(min_length=1)] = Field(default=["validation"])
    """Texts to compute perplexity on: `validation` or files."""
    zero_shot: dict[Name, ZeroShotRecipe] = Field(default={})
    """Data sets to score the causal models on without training for them, by name."""
    speed: bool = True
    """Measure forward and generation throughput."""

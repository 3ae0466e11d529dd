"""Evaluation settings of a recipe."""

from typing import Annotated

from pydantic import (
    Field,
)

from stillhouse.section import Section


class EvaluationRecipe(Section):
    """Measurements: perplexity on the validation split or on files, and speed."""

    perplexity: Annotated[list[str], Field(min_length=1)] = Field(default=["validation"])
    """Texts to compute perplexity on: `validation` or files."""
    speed: bool = True
    """Measure forward and generation throughput."""

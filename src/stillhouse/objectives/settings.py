"""Loss settings of a recipe."""

import sys
from typing import Any, ClassVar

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    create_model,
    model_validator,
)

from stillhouse.objectives.divergence import Divergence, LossRecipe
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.section import Rows, Section


class HardLossRecipe(Section):
    """The language modeling loss, always on the predicted rows."""

    weight: NonNegativeFloat
    """Weight of the mean over the predicted rows."""

    rows: ClassVar[Rows] = "predicted"


class RelationRecipe(LossRecipe):
    """Self-relations of queries, keys and values of one attention layer of each model."""

    heads: PositiveInt | None = None
    """Relation heads; by default as many as the student has attention heads."""
    teacher_layer: NonNegativeInt | None = None
    """Layer of the teacher, counted from 0; by default the last."""
    student_layer: NonNegativeInt | None = None
    """Layer of the student, counted from 0; by default the last."""


def _divergences(reads: str) -> dict[str, Any]:
    """Keys for the divergences of logits or hidden states, described by their modules."""
    return {
        name: (divergence.settings | None, Field(default=None, description=_summary(divergence)))
        for name, divergence in DIVERGENCES.items()
        if divergence.reads == reads
    }


def _summary(divergence: Divergence) -> str:
    return (sys.modules[divergence.loss.__module__].__doc__ or "").partition("\n")[0]


_Terms: type[Section] = create_model(
    "_Terms",
    __base__=Section,
    **_divergences("logits"),
    language_modeling=(HardLossRecipe | None, None),
    **_divergences("hidden"),
    relation=(RelationRecipe | None, None),
)


class LossesRecipe(_Terms):
    """The terms of the distillation objective: the divergences, and those below.

    A term that is left out has no weight.
    """

    language_modeling: HardLossRecipe | None = None
    """Cross entropy of the labels."""
    relation: RelationRecipe | None = None
    """Self-relations of one attention layer (Wang et al. 2021)."""

    def active(self) -> dict[str, LossRecipe | HardLossRecipe]:
        """The terms with a weight above zero, by name, in the order of this class."""
        terms = dict(self)
        return {name: term for name, term in terms.items() if term is not None and term.weight > 0}

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Any:
        if not self.active():
            raise ValueError("every weight is zero or left out, so there is nothing to learn from")
        return self

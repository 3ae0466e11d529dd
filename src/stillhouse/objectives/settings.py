"""Loss settings of a recipe."""

from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, create_model, model_validator

from stillhouse.objectives.divergence import LossRecipe
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.section import Rows, Section


class HardLossRecipe(Section):
    """The language modeling loss, always on the predicted rows."""

    weight: NonNegativeFloat
    """Weight of the mean over the predicted rows."""

    @property
    def rows(self) -> Rows:
        return "predicted"


class RelationRecipe(LossRecipe):
    """Self-relations of queries, keys and values of one attention layer of each model."""

    heads: PositiveInt | None = None
    """Relation heads; by default as many as the student has attention heads."""
    teacher_layer: NonNegativeInt | None = None
    """Layer of the teacher, counted from 0; by default the last."""
    student_layer: NonNegativeInt | None = None
    """Layer of the student, counted from 0; by default the last."""


def _divergences(reads: str) -> dict[str, Any]:
    return {
        name: (divergence.settings | None, None)
        for name, divergence in DIVERGENCES.items()
        if divergence.reads == reads
    }


_Terms: type[Section] = create_model(
    "_Terms",
    __base__=Section,
    **_divergences("logits"),
    language_modeling=(HardLossRecipe | None, None),
    **_divergences("hidden"),
    relation=(RelationRecipe | None, None),
)


class LossesRecipe(_Terms):
    """The terms of the distillation objective. A term that is left out has no weight.

    Each divergence is a key.
    """

    language_modeling: HardLossRecipe | None = None
    relation: RelationRecipe | None = None

    def active(self) -> dict[str, LossRecipe | HardLossRecipe]:
        """The terms with a weight above zero, by name, in the order of this class."""
        terms = dict(self)
        return {name: term for name, term in terms.items() if term is not None and term.weight > 0}

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Any:
        if not self.active():
            raise ValueError("every weight is zero or left out, so there is nothing to learn from")
        return self

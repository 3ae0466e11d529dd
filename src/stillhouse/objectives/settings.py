"""Loss settings of a recipe."""

from typing import Annotated, Any

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from stillhouse.section import Fraction, Rows, Section


class LossRecipe(Section):
    """One term of the objective: its weight, and the rows (positions) that count."""

    weight: NonNegativeFloat
    rows: Rows = "all"


class HardLossRecipe(Section):
    """The language modeling loss: always on the predicted rows."""

    weight: NonNegativeFloat

    @property
    def rows(self) -> Rows:
        return "predicted"


class JsdRecipe(LossRecipe):
    """Generalised Jensen-Shannon divergence; beta is the teacher's share of the mixture."""

    beta: Fraction = 0.5


class SkewRecipe(LossRecipe):
    """Skew KL; alpha is the teacher's share of the mixture."""

    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1


class RelationRecipe(LossRecipe):
    """Self-relations of queries, keys and values, compared in `heads` heads (by default as many as
    the student's attention has) of one layer of each model (from 0; by default the last)."""

    heads: PositiveInt | None = None
    teacher_layer: NonNegativeInt | None = None
    student_layer: NonNegativeInt | None = None


class LossesRecipe(Section):
    """The terms of the distillation objective. A term that is left out has no weight."""

    soft_target: LossRecipe | None = None
    reverse_kl: LossRecipe | None = None
    jsd: JsdRecipe | None = None
    skew_kl: SkewRecipe | None = None
    total_variation: LossRecipe | None = None
    logit_mse: LossRecipe | None = None
    language_modeling: HardLossRecipe | None = None
    hidden_cosine: LossRecipe | None = None
    hidden_mse: LossRecipe | None = None
    relation: RelationRecipe | None = None

    def active(self) -> dict[str, LossRecipe | HardLossRecipe]:
        """The terms with a weight above zero, by name, in the order of this class."""
        terms = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: term for name, term in terms.items() if term is not None and term.weight > 0}

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Any:
        if not self.active():
            raise ValueError("every weight is zero or left out, so there is nothing to learn from")
        return self

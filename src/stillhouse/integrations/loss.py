"""The distillation objective for a training loop of your own.

    loss = DistillationLoss({"soft_target": {"weight": 5.0}, "language_modeling": {"weight": 1.0}},
                            teacher=teacher, temperature=2.0)
    for inputs in loader:
        loss(student, inputs).loss.backward()

Inputs are those of transformers: `input_ids`, `labels` (not shifted; -100 where nothing is
predicted), and optionally `attention_mask` and `position_ids`. The objective is the one that
`stillhouse run` trains with, fused with the head: no (B, T, V) logits are kept.

Axes: B sequences, T positions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.registry import family_of
from stillhouse.integrations.cache import ExampleCache, batch_of
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.section import Rows


@dataclass(frozen=True)
class DistillationOutput:
    """The weighted sum of the terms (differentiable), and each term's mean over its rows."""

    loss: Float[Tensor, ""]
    terms: dict[str, float]


class DistillationLoss:
    """Weighted distillation terms of a student, under a live teacher, a cached one, or none."""

    def __init__(
        self,
        losses: Mapping[str, Any] | LossesRecipe,
        *,
        teacher: PreTrainedModel | None = None,
        cache: ExampleCache | None = None,
        temperature: float = 1.0,
    ) -> None:
        """Args:
            losses: The terms, as in a recipe's `distillation.losses` (docs/reference/recipe.md).
            teacher: A live teacher with the student's vocabulary. It is set to evaluation mode.
            cache: The outputs of a teacher, written by `write_teacher_cache`; batches then carry
                the number of each example as `cache_index`.

        Raises:
            RecipeError: an unknown term or setting, or terms that this teacher cannot serve.
        """
        if teacher is not None and cache is not None:
            raise RecipeError("Give a live teacher or a cache, not both.")
        if cache is not None and cache.temperature != temperature:
            raise RecipeError(
                f"The cache in {cache.folder} was written at temperature {cache.temperature:g}; "
                f"got temperature {temperature:g}. Give the cache's."
            )
        try:
            self.losses = LossesRecipe.model_validate(losses)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "losses"
            raise RecipeError(f"{where}: {first['msg']}, got {first['input']!r:.80}.") from error
        self.temperature = temperature
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.cache = cache
        self._objectives: dict[str, LanguageModelObjective] = {}  # by the student's family

    def __call__(
        self,
        student: PreTrainedModel,
        inputs: Mapping[str, Tensor],
        *,
        num_rows: Mapping[Rows, int] | None = None,
    ) -> DistillationOutput:
        """The loss of one batch.

        Args:
            num_rows: What each term is divided by; the batch's own rows by default. With gradient
                accumulation give `count_rows` of all micro-batches, so that the gradients add up
                to those of one large batch.

        Raises:
            RecipeError: inputs without labels, or with token types; an unsupported teacher.
            DataError: examples that are not those of the cache.
        """
        batch = batch_of(student, inputs)
        if self.cache is not None:
            batch = replace(batch, teacher=self.cache.rows(batch, inputs))
        objective = self._objective(student)
        divisors = num_rows or {kind: batch.num_rows(kind) for kind in get_args(Rows)}
        rows = {name: max(1, divisors[kind]) for name, kind in objective.rows.items()}
        coefficients = {name: weight / rows[name] for name, weight in objective.weights.items()}
        total, sums = objective(student, batch, coefficients)
        return DistillationOutput(total, {name: float(sums[name]) / rows[name] for name in sums})

    def count_rows(
        self, student: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]
    ) -> dict[Rows, int]:
        """The rows of several micro-batches together: all positions, and those with a label."""
        found = [batch_of(student, inputs) for inputs in batches]
        return {kind: sum(batch.num_rows(kind) for batch in found) for kind in get_args(Rows)}

    def _objective(self, student: PreTrainedModel) -> LanguageModelObjective:
        """The objective of a student's family, made once: its hooks stay on the models."""
        family = family_of(student.config)
        if family.model_type not in self._objectives:
            teacher: Any = None
            if self.cache is not None:
                teacher = "cached"
            elif self.teacher is not None:
                teacher = Teacher(family_of(self.teacher.config), self.teacher)
            try:
                self._objectives[family.model_type] = LanguageModelObjective(
                    family, self.losses, teacher=teacher, temperature=self.temperature
                )
            except ValueError as error:
                raise RecipeError(f"{error}; give one as teacher or cache.") from error
        return self._objectives[family.model_type]

"""The objective of a language model on one micro-batch, under a teacher or alone.

Bodies run first; the rows that count are selected from their hidden states; only those rows reach
the head and the losses. With no teacher the one term left is the language modelling loss: that is
how teachers are trained and what a control learns from.

Axes: B sequences, T positions, N rows that count, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.families import Family
from stillhouse.objectives.fused import LOGIT_TERMS, LogitTerm, Projection, fused_losses
from stillhouse.objectives.losses import hidden_cosine_loss, hidden_mse_loss
from stillhouse.recipe import HardLossRecipe, LossesRecipe, LossRecipe, Rows
from stillhouse.tokens.batches import Batch

HIDDEN_LOSSES = {"hidden_cosine": hidden_cosine_loss, "hidden_mse": hidden_mse_loss}
LANGUAGE_MODELING_ALONE = LossesRecipe(language_modeling=HardLossRecipe(weight=1.0))


@dataclass(frozen=True)
class Teacher:
    """A frozen model whose outputs a student copies."""

    family: Family
    model: PreTrainedModel


class LanguageModelObjective:
    """Weighted sums of the recipe's terms; each term's own sum beside them."""

    def __init__(
        self,
        family: Family,
        losses: LossesRecipe,
        *,
        teacher: Teacher | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.family = family
        self.teacher = teacher
        self.temperature = temperature
        self.terms: dict[str, LossRecipe | HardLossRecipe] = losses.active()
        if teacher is None and set(self.terms) != {"language_modeling"}:
            raise ValueError(f"terms {sorted(self.terms)} need a teacher")

    @property
    def weights(self) -> dict[str, float]:
        """The recipe's weight of each term."""
        return {name: term.weight for name, term in self.terms.items()}

    @property
    def rows(self) -> dict[str, Rows]:
        """The kind of rows that each term counts."""
        return {name: term.rows for name, term in self.terms.items()}

    def __call__(
        self, model: PreTrainedModel, batch: Batch, coefficients: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of coefficient * term over the micro-batch (differentiable), and each term's own sum.

        Terms without a coefficient are left out. With coefficient = weight / rows of the whole
        global batch, micro-batches add up to the step's loss."""
        selected = self._selected_rows(batch, coefficients)
        student_rows = self.family.run_body(model, batch)[selected]
        teacher_rows = None
        if self.teacher is not None and set(coefficients) != {"language_modeling"}:
            with torch.no_grad():
                teacher_rows = self.teacher.family.run_body(self.teacher.model, batch)[selected]
        masks = {
            "all": None,
            "predicted": None
            if self._only_predicted(coefficients)
            else batch.rows("predicted")[selected],
        }
        total, values = self._logit_losses(
            model, student_rows, teacher_rows, batch.labels[selected], masks, coefficients
        )
        for name, coefficient in coefficients.items():
            if name in HIDDEN_LOSSES:
                assert teacher_rows is not None
                mask = masks[self.terms[name].rows]
                pair = (student_rows, teacher_rows)
                kept = pair if mask is None else tuple(rows[mask] for rows in pair)
                value = HIDDEN_LOSSES[name](*kept)
                values[name] = value.detach()
                total = total + coefficient * value
        return total, values

    def _only_predicted(self, names: Mapping[str, float]) -> bool:
        return all(self.terms[name].rows == "predicted" for name in names)

    def _selected_rows(self, batch: Batch, names: Mapping[str, float]) -> Tensor:
        return batch.rows("predicted" if self._only_predicted(names) else "all")

    def _logit_losses(
        self,
        model: PreTrainedModel,
        student_rows: Tensor,
        teacher_rows: Tensor | None,
        labels: Tensor,
        masks: Mapping[str, Tensor | None],
        coefficients: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        terms = {}
        for name, coefficient in coefficients.items():
            if name in LOGIT_TERMS:
                recipe = self.terms[name]
                extra: dict[str, Any] = {
                    key: getattr(recipe, key) for key in ("beta", "alpha") if hasattr(recipe, key)
                }
                rows = None if name == "language_modeling" else masks[recipe.rows]
                terms[name] = LogitTerm(coefficient, rows, **extra)
        if not terms:
            return student_rows.new_zeros((), dtype=torch.float32), {}
        student = self._projection(self.family, model, student_rows)
        teacher = None
        if teacher_rows is not None and self.teacher is not None:
            with torch.no_grad():
                teacher = self._projection(self.teacher.family, self.teacher.model, teacher_rows)
        return fused_losses(student, teacher, labels, terms, temperature=self.temperature)

    @staticmethod
    def _projection(family: Family, model: PreTrainedModel, rows: Tensor) -> Projection:
        head = family.head(model)
        return Projection(head.transform(rows), head.weight, head.bias)

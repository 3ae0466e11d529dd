"""The objective of a language model on one micro-batch, under a teacher (live or cached) or alone.

Bodies run first; the rows that count are selected from their hidden states; only those rows reach
the head and the losses. With no teacher the one term left is the language modeling loss: that is
how teachers are trained and what a control learns from.

Axes: B sequences, T positions, N rows that count, D hidden size.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.families.base import Family
from stillhouse.objectives.fused import Projection, fused_losses
from stillhouse.objectives.logit_gradients import LOGIT_TERMS, LogitTerm
from stillhouse.objectives.losses import hidden_cosine_loss, hidden_mse_loss
from stillhouse.objectives.relation_term import RelationTerm
from stillhouse.objectives.settings import HardLossRecipe, LossesRecipe, LossRecipe
from stillhouse.section import Rows
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.tokens.teacher_rows import SparseRows

HIDDEN_LOSSES = {"hidden_cosine": hidden_cosine_loss, "hidden_mse": hidden_mse_loss}
LANGUAGE_MODELING_ALONE = LossesRecipe(language_modeling=HardLossRecipe(weight=1.0))


@dataclass(frozen=True)
class Teacher:
    """A frozen model whose outputs a student copies."""

    family: Family
    model: PreTrainedModel


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's side of the rows that count: last hidden states, and what the head makes of
    them."""

    hidden: Tensor | None
    targets: Projection | SparseRows


class LanguageModelObjective:
    """Weighted sums of the recipe's terms; each term's own sum beside them."""

    def __init__(
        self,
        family: Family,
        losses: LossesRecipe,
        *,
        teacher: Teacher | Literal["cached"] | None = None,
        temperature: float = 1.0,
    ) -> None:
        """With a `cached` teacher every batch brings its teacher's rows along."""
        self.family = family
        self.teacher = teacher
        self.temperature = temperature
        self.terms: dict[str, LossRecipe | HardLossRecipe] = losses.active()
        if teacher is None and set(self.terms) != {"language_modeling"}:
            raise ValueError(f"terms {sorted(self.terms)} need a teacher")
        self._relation = None
        if losses.relation is not None and "relation" in self.terms:
            if not isinstance(teacher, Teacher):
                raise ValueError("the term relation needs a live teacher")
            self._relation = RelationTerm(losses.relation, teacher.family, teacher.model)

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
        kind = self._selected_rows(coefficients)
        selected = batch.row_numbers(kind)
        watch = (
            nullcontext() if self._relation is None else self._relation.watch(self.family, model)
        )
        with watch as relations:
            student_rows = self.family.run_rows(model, batch, kind)
            taught = None
            if set(coefficients) != {"language_modeling"}:
                taught = self._taught(batch, kind)
        labels = batch.labels.flatten().index_select(0, selected)
        masks = {
            "all": None,
            "predicted": None if self._only_predicted(coefficients) else labels != IGNORED,
        }
        total, values = self._logit_losses(model, student_rows, taught, labels, masks, coefficients)
        for name, coefficient in coefficients.items():
            if name in HIDDEN_LOSSES:
                assert taught is not None
                assert taught.hidden is not None
                places = torch.searchsorted(selected, batch.row_numbers(self.terms[name].rows))
                pair = (student_rows, taught.hidden)
                value = HIDDEN_LOSSES[name](*(rows.index_select(0, places) for rows in pair))
                values[name] = value.detach()
                total = total + coefficient * value
        if relations is not None and "relation" in coefficients:
            kind = self.terms["relation"].rows
            value = relations.loss(batch.visible(), batch.rows(kind), batch.most_rows(kind))
            values["relation"] = value.detach()
            total = total + coefficients["relation"] * value
        return total, values

    def _only_predicted(self, names: Mapping[str, float]) -> bool:
        """Whether no term reads hidden states of other rows (the relation term reads none)."""
        return all(self.terms[name].rows == "predicted" for name in names if name != "relation")

    def _selected_rows(self, names: Mapping[str, float]) -> Rows:
        return "predicted" if self._only_predicted(names) else "all"

    def _taught(self, batch: Batch, kind: Rows) -> TeacherOutputs:
        if self.teacher == "cached":
            assert batch.teacher is not None
            places = torch.searchsorted(
                batch.row_numbers(batch.teacher.rows), batch.row_numbers(kind)
            )
            rows = batch.teacher[places]
            return TeacherOutputs(rows.hidden, rows.targets)
        assert isinstance(self.teacher, Teacher)
        with torch.no_grad():
            hidden = self.teacher.family.run_rows(self.teacher.model, batch, kind)
            return TeacherOutputs(hidden, project(self.teacher.family, self.teacher.model, hidden))

    def _logit_losses(
        self,
        model: PreTrainedModel,
        student_rows: Tensor,
        taught: TeacherOutputs | None,
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
        student = project(self.family, model, student_rows)
        teacher = taught.targets if taught is not None else None
        return fused_losses(student, teacher, labels, terms, temperature=self.temperature)


def project(family: Family, model: PreTrainedModel, hidden: Tensor) -> Projection:
    """What the model's head multiplies for these last hidden states (N, D)."""
    head = family.head(model)
    return Projection(head.transform(hidden), head.weight, head.bias)

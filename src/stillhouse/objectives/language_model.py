"""The objective of a language model on one micro-batch, with a teacher (live or cached) or without.

The bodies run first; only the rows that count reach the head and the losses. Without a teacher the
one term is the language modeling loss, which trains teachers and controls.

Axes: B sequences, T positions, N rows that count, D hidden size.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from stillhouse.families.base import Family
from stillhouse.objectives.divergence import LossRecipe
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.fused import LOGIT_TERMS, LogitTerm, Projection, fused_losses
from stillhouse.objectives.projection import to_teacher_size
from stillhouse.objectives.relation import RelationTerm
from stillhouse.objectives.settings import HardLossRecipe, LossesRecipe
from stillhouse.section import Rows
from stillhouse.tokens.batches import IGNORED, Batch, SparseRows

HIDDEN_TERMS = tuple(name for name, each in DIVERGENCES.items() if each.reads == "hidden")
LANGUAGE_MODELING_ALONE = LossesRecipe(language_modeling=HardLossRecipe(weight=1.0))


def needs_hidden(losses: LossesRecipe) -> bool:
    """Whether a term compares last hidden states: a cache then holds the teacher's, and a student
    of another hidden size projects its own."""
    return any(name in HIDDEN_TERMS for name in losses.active())


@dataclass(frozen=True)
class Teacher:
    """A frozen model whose outputs a student copies."""

    family: Family
    model: PreTrainedModel


class LanguageModelObjective:
    """The weighted sum of the recipe's terms, and each term's own sum."""

    def __init__(
        self,
        family: Family,
        losses: LossesRecipe,
        *,
        teacher: Teacher | Literal["cached"] | None = None,
        temperature: float = 1.0,
    ) -> None:
        """With a `cached` teacher every batch holds the teacher's rows."""
        self.family = family
        self.teacher = teacher
        self.temperature = temperature
        self.terms: dict[str, LossRecipe | HardLossRecipe] = losses.active()
        self.weights = {name: term.weight for name, term in self.terms.items()}
        self.rows: dict[str, Rows] = {name: term.rows for name, term in self.terms.items()}
        if teacher is None and set(self.terms) != {"language_modeling"}:
            raise ValueError(f"terms {sorted(self.terms)} need a teacher")
        self._settings = {
            name: term.model_dump(exclude={"weight", "rows"}) for name, term in self.terms.items()
        }
        self._relation = None
        if losses.relation is not None and "relation" in self.terms:
            if not isinstance(teacher, Teacher):
                raise ValueError("the term relation needs a live teacher")
            self._relation = RelationTerm(losses.relation, teacher.family, teacher.model)

    def __call__(
        self, model: PreTrainedModel, batch: Batch, coefficients: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of coefficient * term over the micro-batch (differentiable), and each term's own sum.

        Terms without a coefficient are left out. With coefficient = weight / rows of the whole
        global batch, micro-batches add up to the step's loss."""
        only_predicted = all(
            # The relation term reads no last hidden states.
            name == "relation" or self.rows[name] == "predicted"
            for name in coefficients
        )
        kind: Rows = "predicted" if only_predicted else "all"
        selected = batch.row_numbers(kind)
        relation = self._relation
        with relation.watch(self.family, model) if relation else nullcontext() as relations:
            hidden = self.family.run_rows(model, batch, kind)
            targets, teacher_hidden = None, None
            if set(coefficients) != {"language_modeling"}:
                targets, teacher_hidden = self._teacher_outputs(batch, kind)
        labels = batch.labels.flatten().index_select(0, selected)
        predicted = None if only_predicted else labels != IGNORED
        terms = {
            name: LogitTerm(
                coefficients[name],
                predicted if name != "language_modeling" and term.rows == "predicted" else None,
                self._settings[name],
            )
            for name, term in self.terms.items()
            if name in LOGIT_TERMS and name in coefficients
        }
        total, values = hidden.new_zeros((), dtype=torch.float32), {}
        if terms:
            student = project(self.family, model, hidden)
            total, values = fused_losses(
                student, targets, labels, terms, temperature=self.temperature
            )
        for name in coefficients:
            if name in HIDDEN_TERMS:
                assert teacher_hidden is not None
                places = torch.searchsorted(selected, batch.row_numbers(self.rows[name]))
                ours, theirs = (rows.index_select(0, places) for rows in (hidden, teacher_hidden))
                ours = to_teacher_size(model, ours, theirs)
                values[name] = DIVERGENCES[name].loss(ours, theirs)
                total = total + coefficients[name] * values[name]
        if relations is not None and "relation" in coefficients:
            kind = self.rows["relation"]
            value = relations(batch.visible(), batch.rows(kind), most_rows=batch.most_rows(kind))
            values["relation"] = value
            total = total + coefficients["relation"] * value
        return total, {name: value.detach() for name, value in values.items()}

    def _teacher_outputs(
        self, batch: Batch, kind: Rows
    ) -> tuple[Projection | SparseRows, Float[Tensor, "N D"] | None]:
        """The projection of the teacher's logits or its sparse distributions, and its last hidden
        states, of the rows that count."""
        if self.teacher == "cached":
            assert batch.teacher is not None
            places = torch.searchsorted(
                batch.row_numbers(batch.teacher.rows), batch.row_numbers(kind)
            )
            rows = batch.teacher[places]
            return rows.targets, rows.hidden
        assert isinstance(self.teacher, Teacher)
        with torch.no_grad():
            hidden = self.teacher.family.run_rows(self.teacher.model, batch, kind)
            return project(self.teacher.family, self.teacher.model, hidden), hidden


def language_modeling_loss(
    student_logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Sum of -log q(label) at temperature 1, in nats; rows labeled -100 count nothing.

    This is the formula of the term; training computes it in `fused`.
    """
    return F.cross_entropy(student_logits.float(), labels, reduction="sum")


def project(family: Family, model: PreTrainedModel, hidden: Tensor) -> Projection:
    """The projection of the model's head for these last hidden states (N, D)."""
    head = family.head(model)
    return Projection(head.transform(hidden), head.weight, head.bias, head.softcap)

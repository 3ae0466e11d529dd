"""The objective of a task on one micro-batch: the labels and the teacher's outputs.

Axes: B sequences, N rows (sequences, or targets of each), C classes, D embedding size.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.registry import family_of
from stillhouse.finetuning.settings import TaskLossesRecipe
from stillhouse.objectives.divergences.hidden_cosine import hidden_cosine_loss
from stillhouse.objectives.divergences.hidden_mse import hidden_mse_loss
from stillhouse.objectives.divergences.soft_target import soft_target_loss
from stillhouse.objectives.projection import to_teacher_size
from stillhouse.objectives.relation import RelationTerm
from stillhouse.objectives.task_losses import (
    binary_soft_target_loss,
    contrastive_loss,
    similarity_loss,
)
from stillhouse.tasks.encoded import OutputKind, TaskBatch, TaskRows
from stillhouse.tasks.task import Task
from stillhouse.tokens.batches import IGNORED

HARD_LABEL, RELATION = "hard_label", "relation"
PROJECTED = ("embedding_cosine", "embedding_mse")  # where the sizes of embeddings differ
CONTRAST_TEMPERATURE = 0.05  # Gao et al. 2021, section 3
Loss = Callable[[Tensor, Tensor, TaskBatch, float], Tensor]


class TaskObjective:
    """Weighted sum of the recipe's terms, and each term's own sum."""

    def __init__(
        self,
        task: Task,
        losses: TaskLossesRecipe,
        *,
        teacher: PreTrainedModel | None = None,
        temperature: float = 1.0,
    ) -> None:
        """Without a teacher the only term is the loss on labels."""
        self.task = task
        self.teacher = teacher
        self.temperature = temperature
        self.weights = {HARD_LABEL: 1.0} if teacher is None else losses.active()
        self._relation = None
        if teacher is not None and losses.relation is not None and RELATION in self.weights:
            self._relation = RelationTerm(losses.relation, family_of(teacher.config), teacher)

    @property
    def rows(self) -> dict[str, TaskRows]:
        """The rows of each term: all tokens for relations, labels for the loss on labels, targets
        for the others."""
        own: dict[str, TaskRows] = {RELATION: "all", HARD_LABEL: "labeled"}
        return {name: own.get(name, "predicted") for name in self.weights}

    def __call__(
        self, model: PreTrainedModel, batch: TaskBatch, coefficients: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of coefficient * term over the micro-batch (differentiable), and each term's own
        sum."""
        family = family_of(model.config)
        watch = nullcontext() if self._relation is None else self._relation.watch(family, model)
        with watch as relations:
            outputs = teacher_outputs = self.task.outputs(model, batch).float()
            if self.teacher is not None and set(coefficients) != {HARD_LABEL}:
                with torch.no_grad():
                    teacher_outputs = self.task.outputs(self.teacher, batch).float()
        total, values = outputs.new_zeros(()), {}
        for name, coefficient in coefficients.items():
            if name == RELATION:
                assert relations is not None
                visible = batch.visible(causal=family.language_modeling == "causal")
                visible = visible.expand(-1, visible.shape[-1], -1)
                value = relations(visible, batch.rows(), most_rows=batch.most_rows)
            else:
                loss, ours = TERMS[self.task.output_kind][name], outputs
                if name in PROJECTED:
                    ours = to_teacher_size(model, outputs, teacher_outputs)
                value = loss(ours, teacher_outputs, batch, self.temperature)
            values[name] = value.detach()
            total = total + coefficient * value
        return total, values


def check_terms(task: Task, losses: TaskLossesRecipe) -> None:
    """Refuse terms that a task does not have.

    Raises:
        RecipeError: with those it has.
    """
    known = [*TERMS[task.output_kind], RELATION]
    if unknown := sorted(set(losses.active()) - set(known)):
        raise RecipeError(
            f"losses.{unknown[0]} is not a term of {task.recipe.kind}; its terms are "
            f"{', '.join(known)}. A weight of 0 leaves a term out."
        )


def _cross_entropy(student: Tensor, _: Tensor, batch: TaskBatch, __: float) -> Tensor:
    targets = torch.where(batch.label_mask, batch.targets, IGNORED).flatten()
    return F.cross_entropy(student.flatten(0, -2), targets, ignore_index=IGNORED, reduction="sum")


def _binary_cross_entropy(student: Tensor, _: Tensor, batch: TaskBatch, __: float) -> Tensor:
    each = F.binary_cross_entropy_with_logits(student, batch.targets, reduction="none")
    return (each * batch.label_mask).sum()


def _squared_error(student: Tensor, _: Tensor, batch: TaskBatch, __: float) -> Tensor:
    return ((student - batch.targets).square() * batch.label_mask).sum()


def _contrastive(student: Tensor, _: Tensor, batch: TaskBatch, __: float) -> Tensor:
    """Sequences 0 and 1, 2 and 3, ... of a unit are positive pairs."""
    sides = student[0::2], student[1::2]
    value = sum(
        contrastive_loss(*pair, group=batch.unit_size // 2, temperature=CONTRAST_TEMPERATURE)
        for pair in (sides, sides[::-1])
    )
    return value * batch.target_mask[0, 0]  # all or nothing of a batch is a target


def _soft_target(student: Tensor, teacher: Tensor, batch: TaskBatch, temperature: float) -> Tensor:
    mask = batch.target_mask.flatten()[:, None]
    pair = (torch.where(mask, logits.flatten(0, -2), 0) for logits in (student, teacher))
    return soft_target_loss(*pair, temperature=temperature)


def _binary_soft_target(
    student: Tensor, teacher: Tensor, batch: TaskBatch, temperature: float
) -> Tensor:
    pair = (torch.where(batch.target_mask, logits, 0) for logits in (student, teacher))
    return binary_soft_target_loss(*pair, temperature=temperature)


def _teacher_squared_error(student: Tensor, teacher: Tensor, batch: TaskBatch, _: float) -> Tensor:
    return ((student - teacher).square() * batch.target_mask).sum()


def _embedding_cosine(student: Tensor, teacher: Tensor, batch: TaskBatch, _: float) -> Tensor:
    return hidden_cosine_loss(torch.where(batch.target_mask, student, teacher), teacher)


def _embedding_mse(student: Tensor, teacher: Tensor, batch: TaskBatch, _: float) -> Tensor:
    return hidden_mse_loss(torch.where(batch.target_mask, student, teacher), teacher)


def _similarity(student: Tensor, teacher: Tensor, batch: TaskBatch, _: float) -> Tensor:
    value = similarity_loss(student, teacher, group=batch.unit_size)
    return value * batch.target_mask[0, 0]  # all or nothing of a batch is a target


# The terms of each kind of output: sums over the batch of the student's outputs, the teacher's, and
# the labels.
TERMS: Mapping[OutputKind, Mapping[str, Loss]] = {
    "classes": {HARD_LABEL: _cross_entropy, "soft_target": _soft_target},
    "labels": {HARD_LABEL: _binary_cross_entropy, "soft_target": _binary_soft_target},
    "regression": {HARD_LABEL: _squared_error, "soft_target": _teacher_squared_error},
    "embeddings": {
        HARD_LABEL: _contrastive,
        "embedding_cosine": _embedding_cosine,
        "embedding_mse": _embedding_mse,
        "similarity": _similarity,
    },
}

"""The objective of a task on one micro-batch: the right answers, and a teacher's.

Axes: B sequences, N rows (sequences, or what is asked of each), C classes, D size of a vector.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial

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
from stillhouse.objectives.relation_term import RelationTerm
from stillhouse.objectives.task_losses import (
    binary_soft_target_loss,
    contrastive_loss,
    similarity_loss,
)
from stillhouse.tasks.encoded import TaskBatch, TaskRows
from stillhouse.tasks.task import Task
from stillhouse.tokens.batches import IGNORED

HARD_TARGET, RELATION = "hard_target", "relation"
Loss = Callable[[Tensor, Tensor | None, TaskBatch], Tensor]


class TaskObjective:
    """Weighted sums of the recipe's terms; each term's own sum beside them."""

    def __init__(
        self,
        task: Task,
        losses: TaskLossesRecipe,
        *,
        teacher: PreTrainedModel | None = None,
        temperature: float = 1.0,
    ) -> None:
        """Without a teacher the right answers are all there is to learn."""
        self.task = task
        self.teacher = teacher
        self._losses = _terms_of(task, temperature)
        self.weights = {HARD_TARGET: 1.0} if teacher is None else losses.active()
        self._relation = None
        if teacher is not None and losses.relation is not None and RELATION in self.weights:
            self._relation = RelationTerm(losses.relation, family_of(teacher.config), teacher)

    @property
    def rows(self) -> dict[str, TaskRows]:
        """Relations count all tokens, right answers what has one, every other term what is
        asked."""
        own: dict[str, TaskRows] = {RELATION: "all", HARD_TARGET: "answered"}
        return {name: own.get(name, "predicted") for name in self.weights}

    def __call__(
        self, model: PreTrainedModel, batch: TaskBatch, coefficients: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of coefficient * term over the micro-batch (differentiable), and each term's own
        sum."""
        family = family_of(model.config)
        watch = nullcontext() if self._relation is None else self._relation.watch(family, model)
        with watch as relations:
            outputs = self.task.outputs(model, batch).float()
            taught = None
            if self.teacher is not None and set(coefficients) != {HARD_TARGET}:
                with torch.no_grad():
                    taught = self.task.outputs(self.teacher, batch).float()
        total, values = outputs.new_zeros(()), {}
        for name, coefficient in coefficients.items():
            if name == RELATION:
                assert relations is not None
                visible = batch.visible(causal=family.language_modeling == "causal")
                visible = visible.expand(-1, visible.shape[-1], -1)
                value = relations.loss(visible, batch.rows(), batch.most_rows)
            else:
                value = self._losses[name](outputs, taught, batch)
            values[name] = value.detach()
            total = total + coefficient * value
        return total, values


def check_terms(task: Task, losses: TaskLossesRecipe) -> None:
    """Refuse terms that a task does not have.

    Raises:
        RecipeError: with those it has.
    """
    known = [*_terms_of(task, temperature=1.0), RELATION]
    if unknown := sorted(set(losses.active()) - set(known)):
        raise RecipeError(
            f"losses.{unknown[0]} is no term of {task.recipe.kind}; its terms are "
            f"{', '.join(known)}. A weight of 0 leaves a term out."
        )


def _terms_of(task: Task, temperature: float) -> Mapping[str, Loss]:
    match task.says:
        case "classes":
            return {HARD_TARGET: _class_loss, "soft_target": partial(_soft_target, temperature)}
        case "labels":
            return {
                HARD_TARGET: _label_loss,
                "soft_target": partial(_binary_soft_target, temperature),
            }
        case "values":
            return {HARD_TARGET: _value_loss, "soft_target": _taught_value_loss}
        case "vectors":
            return {
                HARD_TARGET: _contrast,
                "vector_cosine": _vector_cosine,
                "vector_mse": _vector_mse,
                "similarity": _similarity,
            }


def _soft_target(
    temperature: float, ours: Tensor, theirs: Tensor | None, batch: TaskBatch
) -> Tensor:
    assert theirs is not None
    asked = batch.asked.flatten()[:, None]
    pair = (torch.where(asked, logits.flatten(0, -2), 0) for logits in (ours, theirs))
    return soft_target_loss(*pair, temperature=temperature)


def _binary_soft_target(
    temperature: float, ours: Tensor, theirs: Tensor | None, batch: TaskBatch
) -> Tensor:
    assert theirs is not None
    pair = (torch.where(batch.asked, logits, 0) for logits in (ours, theirs))
    return binary_soft_target_loss(*pair, temperature=temperature)


def _vector_cosine(ours: Tensor, theirs: Tensor | None, batch: TaskBatch) -> Tensor:
    return hidden_cosine_loss(*_asked_vectors(ours, theirs, batch))


def _vector_mse(ours: Tensor, theirs: Tensor | None, batch: TaskBatch) -> Tensor:
    return hidden_mse_loss(*_asked_vectors(ours, theirs, batch))


def _similarity(ours: Tensor, theirs: Tensor | None, batch: TaskBatch) -> Tensor:
    assert theirs is not None
    value = similarity_loss(ours, theirs, group=batch.together)
    return value * batch.asked[0, 0]  # of a batch all is asked, or nothing


def _class_loss(ours: Tensor, theirs: Tensor | None, batch: TaskBatch) -> Tensor:
    targets = torch.where(batch.answered, batch.targets, IGNORED).flatten()
    return F.cross_entropy(ours.flatten(0, -2), targets, ignore_index=IGNORED, reduction="sum")


def _label_loss(ours: Tensor, theirs: Tensor | None, batch: TaskBatch) -> Tensor:
    each = F.binary_cross_entropy_with_logits(ours, batch.targets, reduction="none")
    return (each * batch.answered).sum()


def _value_loss(ours: Tensor, theirs: Tensor | None, batch: TaskBatch) -> Tensor:
    return ((ours - batch.targets).square() * batch.answered).sum()


def _taught_value_loss(ours: Tensor, theirs: Tensor | None, batch: TaskBatch) -> Tensor:
    assert theirs is not None
    return ((ours - theirs).square() * batch.asked).sum()


def _asked_vectors(ours: Tensor, theirs: Tensor | None, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Both models' vectors; equal ones where nothing is asked."""
    assert theirs is not None
    return torch.where(batch.asked, ours, theirs), theirs


def _contrast(ours: Tensor, theirs: Tensor | None, batch: TaskBatch) -> Tensor:
    """Sequences 0 and 1, 2 and 3, ... of a unit are partners."""
    sides = ours[0::2], ours[1::2]
    value = sum(
        contrastive_loss(*pair, group=batch.together // 2, temperature=CONTRAST_TEMPERATURE)
        for pair in (sides, sides[::-1])
    )
    return value * batch.asked[0, 0]  # of a batch all is asked, or nothing


CONTRAST_TEMPERATURE = 0.05  # Gao et al. 2021, section 3

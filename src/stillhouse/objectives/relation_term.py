"""The relation term of an objective: the layers and heads it compares, and its value on a
micro-batch.

Axes: B sequences, T positions.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.base import Family
from stillhouse.families.qkv_hook import QKVHook
from stillhouse.objectives.relation import relation_loss
from stillhouse.objectives.settings import RelationRecipe


@dataclass(frozen=True)
class RelationPlan:
    """The layers that are compared, counted from 0, and the number of relation heads."""

    student_layer: int
    teacher_layer: int
    num_heads: int


def plan_relation(
    recipe: RelationRecipe, student: PretrainedConfig, teacher: PretrainedConfig
) -> RelationPlan:
    """The recipe resolved for two models: by default their last layers, and as many heads as the
    student's attention has.

    Raises:
        RecipeError: a layer that a model does not have, or heads that do not divide both hidden
            sizes.
    """
    return RelationPlan(
        _layer("student", recipe.student_layer, student.num_hidden_layers),
        _layer("teacher", recipe.teacher_layer, teacher.num_hidden_layers),
        _num_heads(recipe.heads, student, teacher),
    )


def check_relation(
    recipe: RelationRecipe | None, student: PretrainedConfig, teacher: PretrainedConfig
) -> None:
    """Check that these two models can have the relation term.

    Raises:
        RecipeError: as `plan_relation` does.
    """
    if recipe is not None and recipe.weight > 0:
        plan_relation(recipe, student, teacher)


def _layer(model: str, wanted: int | None, num_layers: int) -> int:
    last = num_layers - 1
    if wanted is not None and wanted > last:
        raise RecipeError(
            f"losses.relation.{model}_layer is {wanted}, but the {model} has layers 0 to {last}. "
            f"Choose one of those, or leave the key out for the last."
        )
    return last if wanted is None else wanted


def _num_heads(wanted: int | None, student: PretrainedConfig, teacher: PretrainedConfig) -> int:
    num_heads = wanted or student.num_attention_heads
    common = math.gcd(student.hidden_size, teacher.hidden_size)
    if common % num_heads == 0:
        return num_heads
    given = str(wanted) if wanted else f"left out, so it is the student's own {num_heads}"
    nearest = max(count for count in range(1, num_heads + 1) if common % count == 0)
    raise RecipeError(
        f"losses.relation.heads is {given}, but it must divide the hidden sizes of "
        f"the student ({student.hidden_size}) and of the teacher ({teacher.hidden_size}). Set it "
        f"to {nearest}, or to another number that divides both."
    )


@dataclass(frozen=True)
class Relations:
    """Queries, keys and values of a micro-batch in student and teacher, once both have run."""

    student: list[Tensor]
    teacher: list[Tensor]
    num_heads: int

    def loss(
        self, visible: Bool[Tensor, "B T T"], rows: Bool[Tensor, "B T"], most_rows: int
    ) -> Float[Tensor, ""]:
        """The relation loss, summed over the rows that count; see `relation_loss`."""
        return relation_loss(
            self.student,
            self.teacher,
            visible,
            rows,
            num_heads=self.num_heads,
            most_rows=most_rows,
        )


class RelationTerm:
    """Captures the compared layers of a live teacher and of its student in their forward passes."""

    def __init__(
        self, recipe: RelationRecipe, teacher_family: Family, teacher: PreTrainedModel
    ) -> None:
        self.recipe = recipe
        self.teacher_family = teacher_family
        self.teacher = teacher
        # Student's hook, teacher's hook, number of relation heads.
        self._hooks: WeakKeyDictionary[PreTrainedModel, tuple[QKVHook, QKVHook, int]] = (
            WeakKeyDictionary()
        )

    @contextmanager
    def watch(self, family: Family, student: PreTrainedModel) -> Iterator[Relations]:
        """Within this context, one forward pass of each body fills the relations.

        Raises:
            RecipeError: as `plan_relation` does.
        """
        if student not in self._hooks:
            plan = plan_relation(self.recipe, student.config, self.teacher.config)
            self._hooks[student] = (
                QKVHook(family, student, plan.student_layer),
                QKVHook(self.teacher_family, self.teacher, plan.teacher_layer),
                plan.num_heads,
            )
        of_student, of_teacher, num_heads = self._hooks[student]
        with of_student.open() as ours, of_teacher.open() as theirs:
            yield Relations(ours, theirs, num_heads)

"""A learned projection of hidden states, where those of student and teacher differ in size.

Losses of hidden states compare the teacher's with W h of the student's h (Jiao et al. 2020, section
3). W is a module of the student while it is trained: optimizer, checkpoints and ranks treat it as
any other weight. The student that is saved does not have it.

Axes: N rows that count, D hidden size of the student, E of the teacher.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.base import hidden_state_size

NAME = "hidden_projection"


def projection_shape(
    student: PretrainedConfig, teacher: PretrainedConfig
) -> tuple[int, int] | None:
    """The sizes (E, D) of the projection; None where hidden states have one size."""
    ours, theirs = hidden_state_size(student), hidden_state_size(teacher)
    return None if ours == theirs else (theirs, ours)


def add_projection(
    student: PreTrainedModel,
    teacher: PretrainedConfig,
    *,
    kept: Sequence[int] = (),
    seed: int = 0,
) -> None:
    """Give the student a projection to its teacher's hidden size, if theirs differ.

    Args:
        kept: The teacher's channels that the student's are, in order, where it was cut from the
            teacher: the projection then starts by putting them in their places.
        seed: Of random weights, where it was not.
    """
    shape = projection_shape(student.config, teacher)
    if shape is None:
        return
    projection = nn.Linear(shape[1], shape[0], bias=False)
    with torch.no_grad():
        if len(kept) == shape[1]:
            projection.weight.zero_()[list(kept), range(shape[1])] = 1.0
        else:
            generator = torch.Generator().manual_seed(seed)
            projection.weight.normal_(0.0, shape[1] ** -0.5, generator=generator)
    student.add_module(NAME, projection.to(student.device))


def projection_of(model: nn.Module) -> nn.Module | None:
    """A student's projection; None without one."""
    return getattr(model, NAME, None)


def drop_projection(model: nn.Module) -> None:
    """Remove a student's projection, if it has one."""
    if projection_of(model) is not None:
        delattr(model, NAME)


def to_teacher_size(
    model: nn.Module, hidden: Float[Tensor, "N D"], teacher_hidden: Float[Tensor, "N E"]
) -> Float[Tensor, "N E"]:
    """The student's hidden states at the teacher's size.

    Raises:
        RecipeError: their sizes differ, and the student has no projection.
    """
    projection = projection_of(model)
    if projection is not None:
        return projection(hidden)
    if hidden.shape[-1] != teacher_hidden.shape[-1]:
        raise RecipeError(
            f"A loss compares the student's hidden states, of size {hidden.shape[-1]}, with the "
            f"teacher's, of size {teacher_hidden.shape[-1]}. Call add_projection(student, "
            "teacher.config) before the optimizer is made, and drop_projection(student) before "
            "the student is saved, or leave losses of hidden states out."
        )
    return hidden

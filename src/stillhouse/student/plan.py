"""Which student follows from a teacher's configuration and a recipe; no weights are read.

The rule for a layer map given as a number n: student layer i starts from teacher layer
round(i * (L - 1) / (n - 1)), halves to even; n = 1 takes layer 0. For 6 of 12 that is 0, 2, 4, 7,
9, 11, the map of 2019."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from stillhouse.errors import RecipeError
from stillhouse.families import Family, StudentKind, family_named, family_of
from stillhouse.recipe import Recipe, StudentRecipe

DEFAULT_STUDENT = {"bert": "distilbert"}


@dataclass(frozen=True)
class StudentPlan:
    """The student's family, configuration, and the teacher layer that each of its layers starts
    from."""

    family: Family
    kind: StudentKind
    config: PretrainedConfig
    layer_map: list[int]


def evenly_spread(num_student_layers: int, num_teacher_layers: int) -> list[int]:
    """Teacher layers for a student of `num_student_layers`, evenly spread over the teacher's."""
    if num_student_layers == 1:
        return [0]
    step = (num_teacher_layers - 1) / (num_student_layers - 1)
    return [round(layer * step) for layer in range(num_student_layers)]


def plan_student(teacher: PretrainedConfig, recipe: StudentRecipe) -> StudentPlan:
    """The student of `teacher` that the recipe asks for.

    Raises:
        RecipeError: a layer the teacher does not have, more layers than it has, or a family its
            students cannot be of.
    """
    teacher_family = family_of(teacher)
    wanted = recipe.family or DEFAULT_STUDENT.get(
        teacher_family.model_type, teacher_family.model_type
    )
    if wanted not in teacher_family.students:
        raise RecipeError(
            f"student.family is {wanted}, but a {teacher_family.model_type} teacher can start a "
            "student of "
            f"{' or '.join(teacher_family.students)}."
        )
    kind = teacher_family.students[wanted]
    layer_map = _layer_map(recipe.layer_map, teacher.num_hidden_layers)
    return StudentPlan(family_named(wanted), kind, kind.config(teacher, len(layer_map)), layer_map)


def _layer_map(wanted: int | list[int] | None, num_teacher_layers: int) -> list[int]:
    last = num_teacher_layers - 1
    if isinstance(wanted, list):
        unknown = [layer for layer in wanted if not 0 <= layer <= last]
        if unknown:
            raise RecipeError(
                f"student.layer_map names teacher layers {unknown}, but the teacher has layers 0 "
                f"to {last}. "
                "Choose from those, such as "
                f"{evenly_spread(max(1, num_teacher_layers // 2), num_teacher_layers)}."
            )
        return wanted
    num_layers = wanted or max(1, num_teacher_layers // 2)
    if num_layers > num_teacher_layers:
        raise RecipeError(
            f"student.layer_map asks for {num_layers} layers, but the teacher has "
            f"{num_teacher_layers}. "
            f"Give a number from 1 to {num_teacher_layers}."
        )
    return evenly_spread(num_layers, num_teacher_layers)


def check_sequence_length(recipe: Recipe, teacher: PretrainedConfig) -> None:
    """Refuse sequences longer than the teacher's positions, and the wrong kind of language
    modeling.

    Raises:
        RecipeError: either of them.
    """
    family = family_of(teacher)
    if family.language_modeling != recipe.tokens.language_modeling:
        raise RecipeError(
            f"tokens.language_modeling is {recipe.tokens.language_modeling}, but the teacher is a "
            f"{family.model_type} model, which does {family.language_modeling} language modeling. "
            f"Set it to {family.language_modeling}."
        )
    num_positions = family.num_positions(teacher)
    if recipe.tokens.sequence_length > num_positions:
        raise RecipeError(
            f"tokens.sequence_length is {recipe.tokens.sequence_length}, but the teacher has "
            f"{num_positions} "
            f"positions. Set it to at most {num_positions}."
        )

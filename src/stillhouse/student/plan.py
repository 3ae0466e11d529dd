"""Plans the student from a teacher's configuration and a recipe; no weights are read."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from stillhouse.errors import RecipeError
from stillhouse.families.base import Family, StudentMapping
from stillhouse.families.registry import family_named, family_of
from stillhouse.student.settings import StudentRecipe


@dataclass(frozen=True)
class StudentPlan:
    """The student's family, configuration, and the teacher layer that each of its layers starts
    from."""

    family: Family
    kind: StudentMapping
    config: PretrainedConfig
    layer_map: list[int]


def plan_student(teacher: PretrainedConfig, recipe: StudentRecipe) -> StudentPlan:
    """The recipe's student of `teacher`.

    Raises:
        RecipeError: a layer the teacher does not have, more layers than it has, a first layer that
            cannot be one, or a family its students cannot be of.
    """
    teacher_family = family_of(teacher)
    mappings = teacher_family.student_mappings
    wanted = recipe.family or next(iter(mappings))
    if wanted not in mappings:
        raise RecipeError(
            f"student.family is {wanted}, but a {teacher_family.model_type} teacher can initialize "
            f"a student of {' or '.join(mappings)}."
        )
    kind = mappings[wanted]
    layer_map = teacher_family.layer_map(recipe.layer_map, teacher, key="student.layer_map")
    return StudentPlan(family_named(wanted), kind, kind.config(teacher, layer_map), layer_map)

"""Plans the student from a teacher's configuration and a recipe; no weights are read."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from stillhouse.errors import RecipeError
from stillhouse.families.base import Family, StudentMapping
from stillhouse.families.registry import family_named, family_of
from stillhouse.models.vocabulary import with_vocabulary_size
from stillhouse.student.axes import sizes_of
from stillhouse.student.settings import LayerChoice, StudentRecipe
from stillhouse.student.width import narrow_config


@dataclass(frozen=True)
class StudentPlan:
    """The student's family, configuration, and the teacher layer that each of its layers starts
    from.

    `narrow` is the teacher's configuration at the student's widths, with all layers. Where the
    layers are still to be chosen by their importance, `choice` says how, and `layer_map`
    stands for it: as many layers, evenly spread. `is_measured` says whether the text of
    `student.importance` decides the initial weights: there are fewer layers, channels or heads to
    choose, or the cut student is reconstructed.
    """

    family: Family
    kind: StudentMapping
    narrow: PretrainedConfig
    config: PretrainedConfig
    layer_map: list[int]
    is_measured: bool
    choice: LayerChoice | None = None


def plan_student(
    teacher: PretrainedConfig, recipe: StudentRecipe, *, chosen: Sequence[int] | None = None
) -> StudentPlan:
    """The recipe's student of `teacher`.

    Args:
        chosen: The layers that were chosen by their importance, once they are.

    Raises:
        RecipeError: a layer the teacher does not have, more layers or wider ones than it has, or a
            family its students cannot be of.
    """
    teacher_family = family_of(teacher)
    if recipe.vocabulary is not None and recipe.vocabulary < teacher.vocab_size:
        teacher = with_vocabulary_size(teacher, recipe.vocabulary)
    mappings = teacher_family.student_mappings
    wanted = recipe.family or next(iter(mappings))
    if wanted not in mappings:
        raise RecipeError(
            f"student.family is {wanted}, but a {teacher_family.model_type} teacher can initialize "
            f"a student of {' or '.join(mappings)}."
        )
    kind, layers = mappings[wanted], recipe.layer_map
    number = layers.layers if isinstance(layers, LayerChoice) else layers
    layer_map = teacher_family.layer_map(number, teacher, key="student.layer_map")
    choice = None
    if recipe.chooses_layers and len(layer_map) < teacher.num_hidden_layers:
        choice = layers if isinstance(layers, LayerChoice) else LayerChoice(layers=len(layer_map))
    narrow = narrow_config(teacher, recipe)
    is_narrower = sizes_of(narrow) != sizes_of(teacher)
    is_measured = choice is not None or recipe.reconstruct
    is_measured |= is_narrower and recipe.weights == "teacher"
    if choice and chosen is not None:
        choice, layer_map = None, list(chosen)
    config = kind.config(narrow, layer_map)
    return StudentPlan(family_named(wanted), kind, narrow, config, layer_map, is_measured, choice)

"""Teacher settings of a recipe."""

from collections.abc import Mapping

from stillhouse.families.settings import ArchitectureRecipe
from stillhouse.section import Section
from stillhouse.training.settings import PretrainingRecipe


class TeacherRecipe(ArchitectureRecipe):
    """A teacher trained here from random weights, on the recipe's own tokens."""

    training: PretrainingRecipe = PretrainingRecipe()
    """Training of the teacher."""


class TunedTeacherRecipe(Section):
    """A teacher that goes on from a model (a folder or a hub name), on the recipe's own tokens."""

    start: str
    """Model to fine-tune: a folder or a hub name."""
    training: PretrainingRecipe = PretrainingRecipe()
    """Training of the teacher."""


def kind_of_teacher(value: object) -> str:
    if isinstance(value, Mapping):
        described = set(TeacherRecipe.model_fields) - {"training"}
        return "trained" if described & set(value) and "start" not in value else "tuned"
    if isinstance(value, TunedTeacherRecipe):
        return "tuned"
    return "trained" if isinstance(value, TeacherRecipe) else "named"

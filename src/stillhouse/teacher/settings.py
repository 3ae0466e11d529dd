"""Teacher settings of a recipe."""

from collections.abc import Mapping

from stillhouse.families.settings import ArchitectureRecipe
from stillhouse.section import Section
from stillhouse.training.settings import PretrainingRecipe


class TeacherRecipe(ArchitectureRecipe):
    """A teacher trained from random weights on the recipe's tokens."""

    training: PretrainingRecipe = PretrainingRecipe()
    """Training of the teacher."""


class TunedTeacherRecipe(Section):
    """A teacher that fine-tunes a model on the recipe's tokens."""

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

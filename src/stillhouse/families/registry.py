"""Which family a model belongs to."""

from importlib import import_module

from transformers import PretrainedConfig

from stillhouse.errors import ModelError, RecipeError
from stillhouse.families import architectures
from stillhouse.families.base import Family
from stillhouse.families.settings import FAMILY_NAMES
from stillhouse.tokens.settings import TokensRecipe

FAMILIES: dict[str, Family] = {
    name: import_module(f"{architectures.__name__}.{name}").FAMILY for name in FAMILY_NAMES
}


def family_named(model_type: str) -> Family:
    """The family of a transformers `model_type`.

    Raises:
        ModelError: the architecture is not supported.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"The architecture {model_type!r} is not supported; supported are "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[model_type]


def family_of(config: PretrainedConfig) -> Family:
    """The family that a configuration belongs to."""
    return family_named(config.model_type)


def check_sequence_length(tokens: TokensRecipe, teacher: PretrainedConfig) -> None:
    """Check the recipe's sequences and kind of language modeling against the teacher.

    Raises:
        RecipeError: sequences longer than the teacher's positions, or causal sequences for a masked
            teacher, or the reverse.
    """
    family = family_of(teacher)
    if family.language_modeling != tokens.language_modeling:
        raise RecipeError(
            f"tokens.language_modeling is {tokens.language_modeling}, but the teacher is a "
            f"{family.model_type} model, which does {family.language_modeling} language modeling. "
            f"Set it to {family.language_modeling}."
        )
    num_positions = family.num_positions(teacher)
    if tokens.sequence_length > num_positions:
        raise RecipeError(
            f"tokens.sequence_length is {tokens.sequence_length}, but the teacher has "
            f"{num_positions} positions. Set it to at most {num_positions}."
        )

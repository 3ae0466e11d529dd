"""Which family a model belongs to."""

from transformers import PretrainedConfig

from stillhouse.errors import ModelError, RecipeError
from stillhouse.families import bert, distilbert, gpt2, roberta
from stillhouse.families.base import Family
from stillhouse.tokens.settings import TokensRecipe

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (gpt2.FAMILY, bert.FAMILY, distilbert.FAMILY, roberta.FAMILY)
}


def family_named(model_type: str) -> Family:
    """The family of a transformers `model_type`.

    Raises:
        ModelError: Stillhouse does not know this architecture.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"Stillhouse does not know the architecture {model_type!r}; it knows "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[model_type]


def family_of(config: PretrainedConfig) -> Family:
    """The family that a configuration belongs to."""
    return family_named(config.model_type)


def check_sequence_length(tokens: TokensRecipe, teacher: PretrainedConfig) -> None:
    """Refuse sequences longer than the teacher's positions, and the wrong kind of language
    modeling.

    Raises:
        RecipeError: either of them.
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
            f"{num_positions} "
            f"positions. Set it to at most {num_positions}."
        )

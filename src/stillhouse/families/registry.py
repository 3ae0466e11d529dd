"""Which family a model belongs to."""

from transformers import PretrainedConfig

from stillhouse.errors import ModelError
from stillhouse.families import bert, distilbert, gpt2, roberta
from stillhouse.families.base import Family

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

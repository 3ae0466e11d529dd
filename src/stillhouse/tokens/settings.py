"""Tokenization and masking settings of a recipe."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    Tag,
    model_validator,
)

from stillhouse.section import Fraction, LanguageModeling, Section, UnitInterval

CacheKind = Literal["top_k", "sampled"]

Trainable = Literal["byte_bpe", "wordpiece"]

OWN_TOKENIZER = (
    f"a tokenizer's folder, or {{train: {' or '.join(get_args(Trainable))}, vocabulary_size: N}}"
)


class TrainedTokenizer(Section):
    """A tokenizer trained on the corpus itself."""

    train: Trainable
    vocabulary_size: Annotated[int, Field(ge=300)] = 32_000


class MaskingRecipe(Section):
    """Masked language modeling: how many tokens are predicted, and what replaces them."""

    fraction: Fraction = 0.15
    mask_fraction: UnitInterval = 0.8
    keep_fraction: UnitInterval = 0.1
    random_fraction: UnitInterval = 0.1
    rarity_exponent: NonNegativeFloat = 0.7
    sampling: Literal["per_sequence", "per_batch"] = "per_sequence"

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> Any:
        total = self.mask_fraction + self.keep_fraction + self.random_fraction
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"mask_fraction + keep_fraction + random_fraction is {total:g}; the three "
                "fractions must sum to 1"
            )
        return self


def _kind_of_tokenizer(value: object) -> str:
    return "trained" if isinstance(value, (Mapping, TrainedTokenizer)) else "named"


class TokensRecipe(Section):
    """How documents become sequences of tokens."""

    language_modeling: LanguageModeling = "causal"
    tokenizer: Annotated[
        Annotated[str, Tag("named")] | Annotated[TrainedTokenizer, Tag("trained")],
        Discriminator(_kind_of_tokenizer),
    ] = "teacher"
    sequence_length: Annotated[int, Field(ge=8)] = 1024
    attend_across_documents: bool = False
    masking: MaskingRecipe = MaskingRecipe()

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
    """Algorithm: byte-level BPE or WordPiece."""
    vocabulary_size: Annotated[int, Field(ge=300)] = 32_000
    """Number of tokens, special tokens included."""


class MaskingRecipe(Section):
    """Masked language modeling: how many tokens are predicted, and what replaces them."""

    fraction: Fraction = 0.15
    """Fraction of the tokens that are predicted."""
    mask_fraction: UnitInterval = 0.8
    """Fraction of the predicted tokens replaced by the mask token."""
    keep_fraction: UnitInterval = 0.1
    """Fraction of the predicted tokens left unchanged."""
    random_fraction: UnitInterval = 0.1
    """Fraction of the predicted tokens replaced by a random token."""
    rarity_exponent: NonNegativeFloat = 0.7
    """Exponent that makes rare tokens more likely to be predicted; 0 treats all alike."""
    sampling: Literal["per_sequence", "per_batch"] = "per_sequence"
    """Sample the predicted tokens for each sequence, or over a whole batch."""

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
    """Predict the next token, or masked tokens."""
    tokenizer: Annotated[
        Annotated[str, Tag("named")] | Annotated[TrainedTokenizer, Tag("trained")],
        Discriminator(_kind_of_tokenizer),
    ] = "teacher"
    """The teacher's tokenizer, a tokenizer's folder, or a section that trains one."""
    sequence_length: Annotated[int, Field(ge=8)] = 1024
    """Length of a training sequence in tokens."""
    attend_across_documents: bool = False
    """Let tokens attend to other documents of their sequence."""
    masking: MaskingRecipe = MaskingRecipe()
    """Masking of masked language modeling."""

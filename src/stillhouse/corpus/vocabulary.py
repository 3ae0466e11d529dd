"""The student's vocabulary: the tokens that the training text uses most, and the tokenizer that has
these alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerFast

from stillhouse.tokens.tokenizer import find_special_tokens, num_ids
from stillhouse.tokens.vocabulary import choose_tokens, trim_tokenizer


@dataclass(frozen=True)
class TextTokens:
    """A text in a tokenizer's tokens: how often each occurs, by id; and the text's bytes."""

    tokenizer: PreTrainedTokenizerFast
    counts: Int[np.ndarray, " V"]
    num_bytes: int

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerFast, encoded: Iterable[tuple[Any, int, np.ndarray]]
    ) -> "TextTokens":
        """Count parts of a text: anything, their bytes, and their token ids."""
        counts, size = np.zeros(num_ids(tokenizer), np.int64), 0
        for _, num_bytes, ids in encoded:
            counts += np.bincount(ids, minlength=len(counts))
            size += num_bytes
        return cls(tokenizer, counts, size)

    def per_byte(self) -> float:
        """Tokens per byte of the text."""
        return int(self.counts.sum()) / max(1, self.num_bytes)

    def unknown_share(self) -> float:
        """The share of its tokens that are the unknown token."""
        unknown = find_special_tokens(self.tokenizer).unk
        number = 0 if unknown is None else int(self.counts[unknown])
        return number / max(1, int(self.counts.sum()))


@dataclass(frozen=True)
class Vocabulary:
    """A part of a tokenizer's tokens.

    Attributes:
        kept: Their ids in the whole tokenizer, rising.
        whole, trimmed: The text they were chosen on, in all tokens and in these alone.
    """

    kept: Int[np.ndarray, " K"]
    whole: TextTokens
    trimmed: TextTokens

    def facts(self) -> dict[str, Any]:
        """What the cut costs, on the text it was chosen on."""
        whole, trimmed = self.whole, self.trimmed
        return {
            "tokens": len(trimmed.tokenizer),
            "of": len(whole.tokenizer),
            "kept_share": float(whole.counts[self.kept].sum() / max(1, whole.counts.sum())),
            "tokens_per_byte": {"whole": whole.per_byte(), "trimmed": trimmed.per_byte()},
            "unknown_share": {"whole": whole.unknown_share(), "trimmed": trimmed.unknown_share()},
        }


def trim_to_text(
    tokenizer: PreTrainedTokenizerFast,
    size: int,
    count: Callable[[PreTrainedTokenizerFast], TextTokens],
) -> Vocabulary:
    """The tokenizer's most frequent tokens.

    Args:
        size: Number of tokens that stay.
        count: Reads the text in a tokenizer's tokens; called with the whole one, then with the
            trimmed one.

    Raises:
        RecipeError, DataError: a vocabulary that cannot have this size.
    """
    whole = count(tokenizer)
    kept = choose_tokens(tokenizer, whole.counts, size)
    return Vocabulary(kept, whole, count(trim_tokenizer(tokenizer, kept)))

"""The student's vocabulary: the tokens that the training text uses most, and the tokenizer that has
these alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerFast

from stillhouse.tokens.tokenizer import find_special_tokens, num_ids
from stillhouse.tokens.vocabulary import choose_tokens, trim_tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """A part of a tokenizer's tokens.

    Attributes:
        tokenizer: The tokenizer that has these tokens alone.
        kept: Their ids in the whole tokenizer, rising.
        whole: Counts of the training text in the whole tokenizer's tokens.
    """

    tokenizer: PreTrainedTokenizerFast
    kept: Int[np.ndarray, " K"]
    whole: "TextTokens"

    def facts(self, num_tokens: int, num_unknown: int, num_bytes: int) -> dict[str, Any]:
        """What the cut costs, from the same counts in its own tokens."""
        whole = self.whole
        return {
            "tokens": len(self.kept),
            "of": len(whole.counts),
            "kept_share": float(whole.counts[self.kept].sum() / max(1, whole.counts.sum())),
            "tokens_per_byte": {
                "whole": int(whole.counts.sum()) / max(1, whole.num_bytes),
                "trimmed": num_tokens / max(1, num_bytes),
            },
            "unknown_share": {
                "whole": whole.num_unknown / max(1, int(whole.counts.sum())),
                "trimmed": num_unknown / max(1, num_tokens),
            },
        }


@dataclass
class TextTokens:
    """How often each token of a text occurs, the unknown ones among them, and the text's bytes."""

    counts: Int[np.ndarray, " V"]
    num_unknown: int = 0
    num_bytes: int = 0


def trim_to_text(
    tokenizer: PreTrainedTokenizerFast, size: int, encoded: Iterable[tuple[Any, int, np.ndarray]]
) -> Vocabulary:
    """The tokenizer's most frequent tokens.

    Args:
        size: Number of tokens that stay.
        encoded: Parts of the text: anything, their bytes, and their token ids.

    Raises:
        RecipeError, DataError: a vocabulary that cannot have this size.
    """
    whole = TextTokens(np.zeros(num_ids(tokenizer), np.int64))
    for _, num_bytes, ids in encoded:
        whole.counts += np.bincount(ids, minlength=len(whole.counts))
        whole.num_bytes += num_bytes
    if (unknown := find_special_tokens(tokenizer).unk) is not None:
        whole.num_unknown = int(whole.counts[unknown])
    kept = choose_tokens(tokenizer, whole.counts, size)
    return Vocabulary(trim_tokenizer(tokenizer, kept), kept, whole)

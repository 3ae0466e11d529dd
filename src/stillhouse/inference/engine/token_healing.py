"""Token healing: continue a text from anywhere, even from the middle of a word.

A text that stops within a word, or after a space, ends with a token that the model would not have
chosen there: the whole word is another token, and a space belongs to the next word. So the last
token is removed, and the first new token must start with its text.

Axes: V vocabulary.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stillhouse.inference.engine.text_stream import REPLACEMENT_CHARACTER, TextStream


@dataclass(frozen=True)
class RequiredPrefix:
    """The text that a token must start with, and the tokens that do."""

    text: str
    ids: tuple[int, ...]

    def restrict(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """The logits with all other tokens at minus infinity."""
        allowed = torch.tensor(self.ids, device=logits.device)
        return torch.full_like(logits, -torch.inf).index_copy(0, allowed, logits[allowed])


class TokenHealer:
    """Removes the last token of texts where another token could stand."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        special = set(tokenizer.all_special_ids)
        self._names = {id: name for name, id in tokenizer.get_vocab().items() if id not in special}
        self._sorted = sorted((name, id) for id, name in self._names.items())

    def heal(self, ids: Sequence[int]) -> tuple[tuple[int, ...], RequiredPrefix | None]:
        """The tokens to continue from, and the prefix of the first new one. All tokens and None if
        the last is the only one with its prefix, is not a whole character, or is the only token."""
        kept, last = tuple(ids[:-1]), ids[-1]
        name = self._names.get(last)
        if not kept or name is None:
            return tuple(ids), None
        longer = self._sorted[bisect_left(self._sorted, (name, -1)) :]
        same = tuple(id for _, id in takewhile(lambda each: each[0].startswith(name), longer))
        stream = TextStream(self._tokenizer, kept)
        text = stream.push(last) + stream.finish()
        if len(same) == 1 or not text or REPLACEMENT_CHARACTER in text:
            return tuple(ids), None
        return kept, RequiredPrefix(text, same)

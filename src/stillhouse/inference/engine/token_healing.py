"""Going on from anywhere in a text, the middle of a word too.

A text that stops within a word, or after a space, ends with a token that the model would not have
chosen there: the whole word is another token, and a space belongs to the word that follows. So the
last token is taken back, and the first new one must begin as it does.

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
class Beginning:
    """What a token begins with: the text, and the tokens that do."""

    text: str
    ids: tuple[int, ...]

    def only(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """The logits of these tokens; no other may follow."""
        places = torch.tensor(self.ids, device=logits.device)
        return torch.full_like(logits, -torch.inf).index_copy(0, places, logits[places])


class TokenHealer:
    """Takes the last token of texts back."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        special = set(tokenizer.all_special_ids)
        self._names = {id: name for name, id in tokenizer.get_vocab().items() if id not in special}
        self._sorted = sorted((name, id) for id, name in self._names.items())

    def resumed(self, ids: Sequence[int]) -> tuple[tuple[int, ...], Beginning | None]:
        """The tokens to go on from, and how the first new one begins; all of them, and None, where
        the last is the only one that begins as it does, or is no whole character, or is alone."""
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
        return kept, Beginning(text, same)

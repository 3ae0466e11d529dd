"""Both ends of a continuation: where it joins the prompt, and what of its text can be shown.

Incremental decoding shows no partial character, and nothing of a stop string.

Token healing continues a text from anywhere, even from the middle of a word. A text that stops
within a word, or after a space, ends with a token that the model would not have chosen there: the
whole word is another token, and a space belongs to the next word. So the last token is removed, and
the first new token must start with its text.

Axes: V vocabulary.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

CONTEXT = 8  # tokens of the prompt that decoding may look back at
CHARACTER = 4  # bytes, at most
REPLACEMENT_CHARACTER = "\ufffd"  # decoded from bytes that are not a character


class TextStream:
    """The text of one continuation.

    A token may end inside a character, and a text may turn out to start a stop string: both are
    held back until that is decided.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt_ids: Sequence[int],
        stop: Sequence[str] = (),
        known: str = "",
    ) -> None:
        """Args: known: The start of the text, which is not shown."""
        self._tokenizer = tokenizer
        self._stop = stop
        last = max(0, len(prompt_ids) - CONTEXT)
        for start in range(last, max(-1, last - CHARACTER), -1):
            self._read = list(prompt_ids[start:])  # tokens that the next ones are decoded after
            if not self._decode(self._read).startswith(REPLACEMENT_CHARACTER):
                break  # else within a character, and bytes that begin so are no text as a whole
        self._waiting: list[int] = []
        while self._read and self._decode(self._read).endswith(REPLACEMENT_CHARACTER):
            self._waiting.insert(0, self._read.pop())  # the prompt's last character is continued
        self._decoded = ""  # whole characters of the new tokens
        self._shown = len(known)
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be shown after this token."""
        self._waiting.append(token)
        text = self._waiting_text()
        if text and not text.endswith(REPLACEMENT_CHARACTER):
            self._decoded += text
            self._read, self._waiting = self._waiting, []
        return self._show(last=False)

    def finish(self) -> str:
        """The text that was held back, at the end of the continuation."""
        if self.stopped:
            return ""
        self._decoded += self._waiting_text()
        return self._show(last=True)

    def _waiting_text(self) -> str:
        """What the tokens that were not decoded yet add to those before them."""
        return self._decode(self._read + self._waiting)[len(self._decode(self._read)) :]

    def _decode(self, ids: list[int]) -> str:
        return cast(str, self._tokenizer.decode(ids, skip_special_tokens=True))

    def _show(self, *, last: bool) -> str:
        held = self._decoded[self._shown :]
        starts = [at for text in self._stop if (at := held.find(text)) >= 0]
        self.stopped = bool(starts)
        end = min(starts, default=len(held) - (0 if last else self._stop_overlap(held)))
        self._shown += end
        return held[:end]

    def _stop_overlap(self, text: str) -> int:
        """The length of the longest suffix of `text` that a stop string could start with."""
        longest = max(map(len, self._stop), default=1) - 1
        return max(
            (
                length
                for length in range(1, min(longest, len(text)) + 1)
                if text.endswith(tuple(stop[:length] for stop in self._stop))
            ),
            default=0,
        )


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
    """Removes the last token of a text if other tokens start with the same characters."""

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

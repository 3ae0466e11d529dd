"""Tokens to text as they come: no half character is shown, and nothing of a text that ends it."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

CONTEXT = 8  # tokens of the prompt that decoding may look back at
REPLACEMENT_CHARACTER = "\ufffd"  # what stands for bytes that are no character


class TextStream:
    """The text of one continuation.

    A token may end inside a character, and a text may yet turn out to be the beginning of one that
    stops it: both are held back until they are decided.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt_ids: Sequence[int],
        stop: Sequence[str] = (),
        known: str = "",
    ) -> None:
        """Args: known: What the text begins with that is not to be shown."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._before = list(prompt_ids[-CONTEXT:])
        self._new: list[int] = []
        while self._before and self._decode(self._before).endswith(REPLACEMENT_CHARACTER):
            self._new.insert(0, self._before.pop())  # the prompt's last character is continued
        self._stream = DecodeStream(ids=self._before, skip_special_tokens=True)
        for token in self._new:
            self._stream.step(tokenizer.backend_tokenizer, token)
        self._decoded = ""  # of the new tokens, as far as characters are whole
        self._shown = len(known)
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be shown now that this token has come."""
        self._new.append(token)
        self._decoded += self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        return self._show(last=False)

    def finish(self) -> str:
        """What was held back; the continuation has ended."""
        if self.stopped:
            return ""
        before = self._decode(self._before)
        self._decoded = self._decode(self._before + self._new)[len(before) :]
        return self._show(last=True)

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _show(self, *, last: bool) -> str:
        held = self._decoded[self._shown :]
        found = [place for text in self._stop if (place := held.find(text)) >= 0]
        if found:
            self.stopped = True
            shown = held[: min(found)]
        else:
            shown = held if last else held[: len(held) - self._beginning_of_stop(held)]
        self._shown += len(shown)
        return shown

    def _beginning_of_stop(self, text: str) -> int:
        """The length of the longest end of `text` with which a text that stops could begin."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0

"""The identifier of py3langid, several times as fast and with the same answers.

Its features are short strings of bytes, found by the automaton of Aho and Corasick (1975),
"Efficient String Matching: An Aid to Bibliographic Search". A state stands for the longest end of
the text that begins a feature, so it depends on no more bytes than the longest feature has. Hence a
text is cut into lanes that are walked side by side, one byte of each at a time, each from that many
bytes before it.
"""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int
from py3langid.langid import MODEL_FILE, LanguageIdentifier

LANE = 16  # bytes of a text in each lane


class FastIdentifier(LanguageIdentifier):
    """Replaces how a text is scored: all else, such as the probabilities, is that of py3langid."""

    @classmethod
    def load(cls) -> "FastIdentifier":
        """The identifier with the model inside the package."""
        return cls.from_model_file(MODEL_FILE, norm_probs=True)

    def __init__(self, nb_ptc: Any, *args: Any, **kwargs: Any) -> None:
        # Converted once: half precision would be at every use of a row.
        super().__init__(np.asarray(nb_ptc, np.float32), *args, **kwargs)
        self._next = np.asarray(self.tk_nextmove)  # of a row and a byte, the next state
        self._row = np.asarray(self.tk_row, np.int32) << 8  # of a state, where its row begins
        self._feature = np.asarray(self.tk_output, np.int32)  # of a state; -1 for none
        self._longest = self._find_longest()

    def _find_longest(self) -> int:
        """The bytes of the longest feature: the steps to the state farthest from the start."""
        rows = self._next.reshape(-1, 256)
        is_reached = np.zeros(len(self._row), bool)
        is_reached[0] = True
        front, steps = np.array([0]), -1
        while len(front):
            is_new = np.zeros_like(is_reached)
            is_new[rows[np.unique(self._row[front] >> 8)]] = True
            is_new &= ~is_reached
            is_reached |= is_new
            front = np.flatnonzero(is_new)
            steps += 1
        return steps

    def features(self, content: bytes) -> Int[np.ndarray, " F"]:
        """The features at each byte of a text that ends one, in their order."""
        lanes = -(-len(content) // LANE)
        padded = np.zeros(self._longest + lanes * LANE, np.uint8)
        padded[self._longest : self._longest + len(content)] = np.frombuffer(content, np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self._longest + LANE)[::LANE]
        letters = windows.T.astype(np.int32)  # (self._longest + LANE, lanes)
        states = np.zeros((LANE, lanes), self._next.dtype)
        state = np.zeros(lanes, self._next.dtype)
        for place, letter in enumerate(letters, -self._longest):
            state = self._next[self._row[state] + letter]
            if place < 0:
                state[0] = 0  # nothing is before the first lane
            else:
                states[place] = state
        found = self._feature[states.T.ravel()[: len(content)]]
        return found[found >= 0]

    def _raw_score(self, text: bytes) -> Float32[np.ndarray, " L"]:
        """log P(language) + sum over the features of log(1 + count) log P(feature | language), up
        to a constant; zeros for a text without features."""
        if not text:
            return np.zeros(len(self.nb_pc), np.float32)
        features, counts = np.unique(self.features(text), return_counts=True)
        if not len(features):
            return np.zeros(len(self.nb_pc), np.float32)
        return np.log1p(counts.astype(np.float32)) @ self.nb_ptc[features] + self.nb_pc

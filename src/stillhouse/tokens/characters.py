"""Vectorized operations on the characters of a text."""

import numpy as np

# Whether a code point is white space; none after the last entry is.
WHITE_SPACE = np.array([chr(point).isspace() for point in range(0x3001)] + [False])


def code_points(text: str) -> np.ndarray:
    """The code point of each character, as unsigned integers of 8 or 32 bits."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def word_starts(text: str, *, inside_word: bool = False) -> int:
    """How many words start in `text`; words are separated by white space.

    Args:
        inside_word: The character before this text belongs to a word.
    """
    space = WHITE_SPACE.take(code_points(text), mode="clip")
    begins = space[:-1] > space[1:]
    return int(np.count_nonzero(begins)) + bool(len(space) and not space[0] and not inside_word)

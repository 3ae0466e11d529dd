"""Characters of a text as an array, to look at all of them at once."""

import numpy as np

# Whether a character is white space, by code point; beyond the last entry none is.
WHITE_SPACE = np.array([chr(point).isspace() for point in range(0x3001)] + [False])


def code_points(text: str) -> np.ndarray:
    """The code point of each character, as unsigned integers of 8 or 32 bits."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def word_starts(text: str, *, inside_word: bool = False) -> int:
    """How many words begin in `text`; a word is what white space separates.

    `inside_word`: the character before this text belongs to a word.
    """
    space = WHITE_SPACE.take(code_points(text), mode="clip")
    begins = space[:-1] > space[1:]
    return int(np.count_nonzero(begins)) + bool(len(space) and not space[0] and not inside_word)

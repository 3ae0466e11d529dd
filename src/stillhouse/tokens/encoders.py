"""Encoders: functions from texts to token ids, for writing shards.

`tokenizers` defines the ids. gigatoken (the extra `fast`) computes them many times faster for
byte-level BPE, but it is young, so its ids are checked on every text.

Contract: the ids of a checked encoder equal those of `text_encoder` wherever both were computed;
otherwise it raises FastTokenizerMismatchError, and its caller starts again with `text_encoder`. So
the choice of the encoder never changes the shards.
"""

import contextlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from stillhouse.extras import install_command, missing_modules
from stillhouse.tokens.tokenizer import text_encoder

FAST, REFERENCE = "gigatoken", "tokenizers"
FIRST_CHARACTERS = 2**17  # compared whole, at the head of the text
SHARE = 256  # after that, one character in 256
EXCERPT_CHARACTERS = 64  # on each side of a new character or token

# Whether a code point is white space; none after the last entry is.
WHITE_SPACE = np.array([chr(point).isspace() for point in range(0x3001)] + [False])

Encode = Callable[[Sequence[str]], list[np.ndarray]]

# What byte-level rules distinguish: runs and kinds of white space, contractions, digits, marks
# that combine, letters outside the alphabet, characters of several code points.
ODD_TEXTS = (
    "",
    " ",
    "a",
    " a",
    "\n",
    "a  b   c \n\n d\t\te \r\n\r\n f\u00a0g\u2003\u2003h\u3000i\u200bj\x0b\x0ck\x85l\u2028m ",
    "   \n   x \n\t \n\n\n",
    "we're I'll they've it's I'm he'd can't 'S 'RE \u2019s x's's",
    "1 12 123 1234 12345678901234567890 3.14 1,000 x2y ½ ² Ⅷ ٣٤",
    "!!! ... --- ___ <!-- => #### ?!?! a_b __init__ $5 50% \\n",
    "e\u0301 é n\u0303 ñ \u1100\u1161\u11a8 각 \ufb01 \uff21\uff22 ß İ \u017f",
    "日本語の文字\u3002中文\uff0c한국어 текст العربية हिन्दी ไทย עברית ქართული",
    "🙂👩\u200d👩\u200d👧\u200d👦🏳\ufe0f\u200d🌈🇩🇪 👍🏽 \ufeff\ufffd\U0001d4d0\U0010ffff",
    "x" * 300 + " " * 300 + "é" * 300 + "\n" * 300,
)


class FastTokenizerMismatchError(Exception):
    """The fast encoder cannot be used, for the reason in the message; never shown as an error."""


def version_of(engine: str) -> str:
    """An installed package with its version, such as "tokenizers 0.23.3"."""
    return f"{engine} {importlib.metadata.version(engine)}"


def open_fast(tokenizer: PreTrainedTokenizerFast) -> "CheckedEncoder":
    """gigatoken for this tokenizer, compared with `tokenizers` on difficult texts.

    Raises:
        FastTokenizerMismatchError: it is not installed, not for this kind of tokenizer, or not
            equal.
    """
    config = json.loads(tokenizer.backend_tokenizer.to_str())
    if config["model"]["type"] != "BPE" or '"ByteLevel"' not in json.dumps(config["pre_tokenizer"]):
        raise FastTokenizerMismatchError(f"{FAST} is for byte-level BPE")
    if missing_modules("fast"):
        raise FastTokenizerMismatchError(
            f"{FAST} is not installed ({install_command('fast')}); it is many times faster"
        )
    import gigatoken

    # As in `text_encoder`: no truncation or padding, and special tokens in a text are text.
    config |= {"truncation": None, "padding": None}
    config["added_tokens"] = [token for token in config["added_tokens"] if not token["special"]]
    with _failures():
        fast = gigatoken.Tokenizer.from_json(json.dumps(config))
    added = [str(token) for token in tokenizer.get_added_vocab()]
    checked = CheckedEncoder(partial(_encode_all, fast), text_encoder(tokenizer), added)
    checked.compare([*ODD_TEXTS, *(f"a {token}b{token} {token}\n" for token in added)])
    return checked


class CheckedEncoder:
    """A fast encoder whose ids are compared with those of a reference; a context manager.

    Both encode, and must agree on

    - the first `FIRST_CHARACTERS` of the text, one in `SHARE` of its other characters, and its end;
    - the surroundings of the first occurrence of each character and of each added token.

    Raises:
        FastTokenizerMismatchError: they disagree, or the fast encoder fails.
    """

    def __init__(self, fast: Encode, reference: Encode, added_tokens: Sequence[str]) -> None:
        self._fast = fast
        self._reference = reference
        self._new_tokens = list(added_tokens)
        self._seen = np.zeros(0x110000, bool)  # characters, by code point
        self._num_characters = self._num_compared = 0
        self._last: list[tuple[str, np.ndarray]] = []

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text."""
        found = self._encode(texts)
        pairs = list(zip(texts, found, strict=True))
        self._compare([pair for pair in pairs if self._is_due(pair[0])])
        self.compare([excerpt for text in texts for excerpt in self._novelties(text)])
        self._last = pairs[-1:] or self._last
        return found

    def compare(self, texts: Sequence[str]) -> None:
        """Encode texts with both, only to compare them."""
        self._compare(list(zip(texts, self._encode(texts), strict=True)))

    def __enter__(self) -> "CheckedEncoder":
        return self

    def __exit__(self, error: object, *details: object) -> None:
        if error is None:
            self._compare(self._last)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        with _failures():
            found = self._fast(texts) if texts else []
            assert len(found) == len(texts), f"{len(found)} results for {len(texts)} texts"
        return found

    def _is_due(self, text: str) -> bool:
        due = self._num_compared <= FIRST_CHARACTERS + self._num_characters // SHARE
        self._num_characters += len(text)
        self._num_compared += len(text) * due
        return due

    def _novelties(self, text: str) -> Iterator[str]:
        """Excerpts around characters and added tokens that no text had before."""
        points = code_points(text)
        new = np.flatnonzero(~self._seen[points])
        _, first = np.unique(points[new], return_index=True)
        self._seen[points[new]] = True
        tokens = [token for token in self._new_tokens if token in text]
        self._new_tokens = [token for token in self._new_tokens if token not in tokens]
        for place in [*new[first].tolist(), *map(text.index, tokens)]:
            yield text[max(0, place - EXCERPT_CHARACTERS) : place + EXCERPT_CHARACTERS]

    def _compare(self, pairs: Sequence[tuple[str, np.ndarray]]) -> None:
        expected = self._reference([text for text, _ in pairs]) if pairs else []
        for (text, found), right in zip(pairs, expected, strict=True):
            if not np.array_equal(found, right):
                raise FastTokenizerMismatchError(_difference(text, found, right))


def _difference(text: str, found: np.ndarray, right: np.ndarray) -> str:
    shorter = min(len(found), len(right))
    different = np.flatnonzero(found[:shorter] != right[:shorter])
    place = int(different[0]) if len(different) else shorter
    part = slice(place, place + 3)
    return (
        f"{version_of(FAST)} gives {found[part].tolist()} from token {place + 1} of "
        f"{text[:40]!r}..., {REFERENCE} {right[part].tolist()}"
    )


def _encode_all(fast: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """gigatoken's batch call, which uses all cores and one array for all texts."""
    rows = fast.encode_batch(list(texts)).layout
    ids = rows.content.data
    return [ids[start:end] for start, end in pairwise(rows.offsets.data)]


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turn any error of the fast encoder into a FastTokenizerMismatchError.

    A panic of its Rust code is not an Exception in Python, and its class cannot be imported.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        message = " ".join(str(error).split())
        raise FastTokenizerMismatchError(
            f"{version_of(FAST)} failed ({message or type(error).__name__})"
        ) from error


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

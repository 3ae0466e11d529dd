"""Pieces: documents of any length in bounded memory, cut where tokenization does not change.

Contract: the pieces of a document, joined, are the document. A cut stands just before a lone space,
or before a lone newline that follows a letter or digit: there every pre-tokenizer cuts anyway.
Only a stretch of a million characters without such a place is cut hard.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_PIECE_CHARACTERS = 2**20
SEARCH_CHARACTERS = 4096
FIRST_SEARCH = 128  # in most text the last few words hold a place to cut

# Some tokenizers (those of GPT-4 and Llama 3) join punctuation with the newline after it, hence the
# letter or digit before a newline.
SAFE_CUT = re.compile(r"(?<=\S)(?= \S)|(?<=[^\W_])(?=\n\S)")


@dataclass(frozen=True)
class Piece:
    """A document, or one of the pieces of a long one; they follow one another in order."""

    document_id: str
    text: str
    starts_document: bool


def safe_cut(text: str, limit: int) -> int | None:
    """The last place at or before `limit` where `text` may be cut, or None; it is never 0."""
    end = min(limit, len(text) - 2)
    step = FIRST_SEARCH
    while end > 0:
        start = max(1, end - step)
        last = None
        for match in SAFE_CUT.finditer(text, start, end + 2):  # two characters to look ahead at
            if match.start() <= end:
                last = match.start()
        if last is not None:
            return last
        end = start - 1
        step = SEARCH_CHARACTERS
    return None


def stretches(text: str, limit: int) -> Iterator[str]:
    """`text` in parts of about `limit` characters, cut at safe places only."""
    start = 0
    while len(text) - start > limit:
        window = limit
        cut = safe_cut(text[start : start + window + 2], window)
        while cut is None and start + window < len(text):
            window *= 2
            cut = safe_cut(text[start : start + window + 2], window)
        if cut is None:
            break
        yield text[start : start + cut]
        start += cut
    yield text[start:]


def pieces_of(document_id: str, parts: Iterable[str]) -> Iterator[Piece]:
    """One document, given in parts of any size, as pieces of at most `MAX_PIECE_CHARACTERS`.

    A document of white space alone gives nothing, unless it is longer than one piece.
    """
    held = ""
    starts = True
    for part in parts:
        held += part
        begin = 0
        while len(held) - begin > MAX_PIECE_CHARACTERS + 1:
            window = held[begin : begin + MAX_PIECE_CHARACTERS + 2]
            cut = safe_cut(window, MAX_PIECE_CHARACTERS) or MAX_PIECE_CHARACTERS
            yield Piece(document_id, window[:cut], starts)
            begin += cut
            starts = False
        held = held[begin:]
    if held.strip() if starts else held:
        yield Piece(document_id, held, starts)

"""Chunks: documents of any length in bounded memory, cut where tokenization does not change.

Contract: the chunks of a document, joined, are the document. A cut is just before a lone space, or
before a lone newline that follows a letter or digit, where every pre-tokenizer cuts anyway. Only a
million characters without such a position are cut elsewhere.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

MAX_CHUNK_CHARACTERS = 2**20

# Ends at the last position to cut at. Some tokenizers (those of GPT-4 and Llama 3) join punctuation
# with the newline after it, hence the letter or digit before a newline.
UP_TO_SAFE_CUT = re.compile(r"(?s:.*)(?:(?<=\S)(?= \S)|(?<=[^\W_])(?=\n\S))")
SAFE_STARTS = (" ", "\n")  # of what follows a safe cut


@dataclass(frozen=True)
class Chunk:
    """A document, or one of the consecutive parts of a long one."""

    document_id: str
    text: str
    starts_document: bool


def safe_cut(text: str, limit: int) -> int | None:
    """The last position at or before `limit` where `text` may be cut, or None; it is never 0."""
    found = UP_TO_SAFE_CUT.match(text, 0, limit + 2)  # two characters of lookahead
    return found.end() if found else None


def split_text(text: str, limit: int) -> Iterator[str]:
    """`text` in parts of about `limit` characters, cut at safe positions only."""
    start, window = 0, limit
    while len(text) - start > limit:
        cut = safe_cut(text[start : start + window + 2], window)
        if cut is not None:
            yield text[start : start + cut]
            start, window = start + cut, limit
        elif start + window < len(text):
            window *= 2
        else:
            break
    yield text[start:]


def recut(parts: Iterable[str], size: int, cut: Callable[[str], int]) -> Iterator[str]:
    """The text of `parts`, cut again: `cut` gives the length of the next part from the next `size`
    characters; fewer than these are the last part."""
    held = ""
    for part in parts:
        held += part
        start = 0
        while len(held) - start >= size:
            end = start + cut(held[start : start + size])
            yield held[start:end]
            start = end
        held = held[start:]
    yield held


def chunk_document(document_id: str, parts: Iterable[str]) -> Iterator[Chunk]:
    """One document, given in parts of any size, as chunks of at most `MAX_CHUNK_CHARACTERS`.

    A document of white space gives nothing, unless it is as long as a chunk.
    """
    limit = MAX_CHUNK_CHARACTERS
    texts = recut(parts, limit + 2, lambda window: safe_cut(window, limit) or limit)
    for number, text in enumerate(texts):
        if number or len(text) == limit or text.strip():
            yield Chunk(document_id, text, starts_document=number == 0)

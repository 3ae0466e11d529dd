"""Which text is held out: whole documents, or blocks of them where there are too few documents.

Contract: the side of a text follows from its id, as `tokens.held_out` has it. Whole documents are
held out where that leaves text on both sides. Where it does not, as with one big file, the document
that is next in line is held out if it is small, else blocks of documents, cut at paragraphs. This
is known before anything is tokenized, from a pass over the text that ends as soon as both sides
have a document.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from typing import Any

from stillhouse.data.chunks import Chunk, chunk_document, safe_cut
from stillhouse.data.documents import read_documents
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.splits import validation_point
from stillhouse.errors import DataError
from stillhouse.wording import counted

NUM_BLOCKS = 1000  # of all text, within these sizes
SMALLEST_BLOCK, LARGEST_BLOCK = 512, 2**16
SMALL_SHARE = 0.05  # of all text: a document that may be held out whole at any fraction
PARAGRAPH_END = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Splitting:
    """Documents, or blocks of about so many characters, are held out below `limit`."""

    limit: float
    block_characters: int | None = None
    note: str = ""  # why it is not as the recipe says

    def facts(self) -> dict[str, Any]:
        """The same for a manifest."""
        return asdict(self)

    def is_validation(self, piece: Chunk) -> bool:
        """Whether a piece that `cut` gave is held out."""
        return validation_point(piece.document_id) < self.limit

    def cut(self, pieces: Iterable[Chunk]) -> Iterator[Chunk]:
        """Documents as they are, or each run of a document's blocks that are on the same side."""
        if self.block_characters is None:
            yield from pieces
            return
        for blocks in _blocks_of_each(pieces, self.block_characters):
            for _, run in groupby(blocks, key=self.is_validation):
                first = next(run)
                texts = chain([first.text], (block.text for block in run))  # noqa: B031
                yield from chunk_document(first.document_id, texts)


def plan_splits(corpus: CorpusRecipe, *, offline: bool) -> Splitting:
    """How the text of a corpus is split.

    Raises:
        DataError: what cannot be read, or text that is too short for two sides.
        NetworkError: a hub dataset while offline or without a connection.
    """
    fraction = corpus.validation_fraction
    documents = _Points()
    for piece in read_documents(corpus, offline=offline):
        documents.add(piece)
        if documents.lowest < fraction <= documents.highest:
            return Splitting(fraction)
    which = counted(documents.number, "document")
    share = documents.size_of_lowest / documents.num_characters
    if documents.lowest >= fraction and share <= max(SMALL_SHARE, 2 * fraction):
        return Splitting(
            math.nextafter(documents.lowest, 1),
            note=f"none of the {which} falls into the validation split at "
            f"corpus.validation_fraction {fraction:g}: one of them, {share:.1%} of the text, is "
            "held out",
        )
    size = min(max(documents.num_characters // NUM_BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)
    blocks = _Points()
    for found in _blocks_of_each(read_documents(corpus, offline=offline), size):
        for block in found:
            if block.text.strip():
                blocks.add(block)
    if blocks.number < 2:
        raise DataError(
            f"corpus.source {', '.join(corpus.sources)} has {documents.num_characters:,} "
            "characters of text in one document: too little to hold a part of it out for "
            "validation. Give more text."
        )
    if blocks.highest < fraction and (1 - fraction) * blocks.number < 0.5:
        raise DataError(
            f"The train split is empty: at corpus.validation_fraction {fraction:g} all of the "
            f"{which} with text falls into the validation split. Give more text, or a smaller "
            "corpus.validation_fraction."
        )
    limit = min(max(fraction, math.nextafter(blocks.lowest, 1)), blocks.highest)
    text = "the document" if documents.number == 1 else f"the {which}"
    note = f"too few documents to hold out whole ones: blocks of {text} are held out"
    return Splitting(limit, size, f"{note}, each of about {size:,} characters")


class _Points:
    """Where documents or blocks fall in [0, 1), and how large they are."""

    def __init__(self) -> None:
        self.number = 0
        self.num_characters = 0
        self.lowest, self.highest = 1.0, 0.0
        self.size_of_lowest = 0
        self._is_lowest = False

    def add(self, piece: Chunk) -> None:
        if piece.starts_document:
            point = validation_point(piece.document_id)
            self.number += 1
            self._is_lowest = point < self.lowest
            self.size_of_lowest = 0 if self._is_lowest else self.size_of_lowest
            self.lowest, self.highest = min(point, self.lowest), max(point, self.highest)
        self.num_characters += len(piece.text)
        self.size_of_lowest += len(piece.text) if self._is_lowest else 0


def _blocks_of_each(pieces: Iterable[Chunk], size: int) -> Iterator[Iterator[Chunk]]:
    """The blocks of each document."""
    number = 0

    def document(piece: Chunk) -> int:
        nonlocal number
        number += piece.starts_document
        return number

    for _, own in groupby(pieces, key=document):
        yield blocks_of(own, size)


def blocks_of(pieces: Iterable[Chunk], size: int) -> Iterator[Chunk]:
    """One document in blocks of `size` to twice as many characters, cut after a blank line, else
    after a line, else between words."""
    number, held, name = 0, "", ""
    for piece in pieces:
        name = piece.document_id
        held += piece.text
        start = 0
        while len(held) - start > 2 * size:
            end = start + _end_of_block(held[start : start + 2 * size], size)
            yield Chunk(f"{name}#{number}", held[start:end], starts_document=True)
            number, start = number + 1, end
        held = held[start:]
    if held:
        yield Chunk(f"{name}#{number}", held, starts_document=True)


def _end_of_block(window: str, size: int) -> int:
    if paragraph := PARAGRAPH_END.search(window, size):
        return paragraph.end()
    if line := window.find("\n", size) + 1:
        return line
    return safe_cut(window, len(window)) or len(window)

"""The validation split: whole documents, or blocks of them where there are too few documents.

Contract: the split of a text follows from its id, as in `data.documents`. Whole documents are held
out where that leaves text in both splits. Where it does not, as with one big file, the document
with the lowest hash is held out if it is small, else blocks of documents, cut at paragraphs. This
is decided before tokenization, by a pass over the text that ends as soon as both splits have a
document.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

from stillhouse.data.chunks import Chunk, chunk_document, recut, safe_cut
from stillhouse.data.documents import read_documents, validation_point
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import DataError
from stillhouse.wording import counted

NUM_BLOCKS = 1000  # of the whole text, within these sizes
SMALLEST_BLOCK, LARGEST_BLOCK = 512, 2**16
SMALL_SHARE = 0.05  # of the whole text: a document that may be held out at any fraction
PARAGRAPH_END = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Splitting:
    """Documents, or blocks of about `block_characters`, are held out where their hash is below
    `limit`."""

    limit: float
    block_characters: int | None = None
    note: str = ""  # why it differs from the recipe

    def is_validation(self, chunk: Chunk) -> bool:
        """Whether a chunk from `cut` is held out."""
        return validation_point(chunk.document_id) < self.limit

    def cut(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Documents unchanged, or each run of a document's blocks that are of the same split."""
        if self.block_characters is None:
            yield from chunks
            return
        for blocks in _blocks_of_each(chunks, self.block_characters):
            for _, run in groupby(blocks, key=self.is_validation):
                first = next(run)
                texts = chain([first.text], (block.text for block in run))  # noqa: B031
                yield from chunk_document(first.document_id, texts)


def plan_splits(corpus: CorpusRecipe, *, offline: bool) -> Splitting:
    """Decide how the text of a corpus is split.

    Raises:
        DataError: text that cannot be read, or is too short for two splits.
        NetworkError: a hub dataset while offline or without a connection.
    """
    fraction = corpus.validation_fraction
    points: list[float] = []  # the hash of each document, and its size
    sizes: list[int] = []
    sides: set[bool] = set()
    for chunk in read_documents(corpus, offline=offline):
        if chunk.starts_document:
            points.append(validation_point(chunk.document_id))
            sizes.append(0)
            sides.add(points[-1] < fraction)
        if len(sides) == 2:
            return Splitting(fraction)
        sizes[-1] += len(chunk.text)
    lowest, num_characters = min(points), sum(sizes)
    which = counted(len(points), "document")
    share = sizes[points.index(lowest)] / num_characters
    if lowest >= fraction and share <= max(SMALL_SHARE, 2 * fraction):
        return Splitting(
            math.nextafter(lowest, 1),
            note=f"none of the {which} falls into the validation split at "
            f"corpus.validation_fraction {fraction:g}: one of them, {share:.1%} of the text, is "
            "held out",
        )
    size = min(max(num_characters // NUM_BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)
    blocks = [
        validation_point(block.document_id)
        for own in _blocks_of_each(read_documents(corpus, offline=offline), size)
        for block in own
        if block.text.strip()
    ]
    if len(blocks) < 2:
        raise DataError(
            f"corpus.source {', '.join(corpus.sources)} has {num_characters:,} "
            "characters of text in one document: too little to hold a part of it out for "
            "validation. Give more text."
        )
    if max(blocks) < fraction and (1 - fraction) * len(blocks) < 0.5:
        raise DataError(
            f"The train split is empty: at corpus.validation_fraction {fraction:g} all of the "
            f"{which} with text falls into the validation split. Give more text, or a smaller "
            "corpus.validation_fraction."
        )
    limit = min(max(fraction, math.nextafter(min(blocks), 1)), max(blocks))
    text = "the document" if len(points) == 1 else f"the {which}"
    note = f"too few documents to hold out whole ones: blocks of {text} are held out"
    return Splitting(limit, size, f"{note}, each of about {size:,} characters")


def _blocks_of_each(chunks: Iterable[Chunk], size: int) -> Iterator[Iterator[Chunk]]:
    """The blocks of each document."""
    number = 0

    def document(chunk: Chunk) -> int:
        nonlocal number
        number += chunk.starts_document
        return number

    for _, own in groupby(chunks, key=document):
        yield blocks_of(own, size)


def blocks_of(chunks: Iterable[Chunk], size: int) -> Iterator[Chunk]:
    """One document in blocks of `size` to 2 * `size` characters, cut after a blank line, else after
    a line, else between words."""
    chunks = iter(chunks)
    first = next(chunks)
    texts = chain([first.text], (chunk.text for chunk in chunks))
    blocks = recut(texts, 2 * size + 1, lambda window: _end_of_block(window[:-1], size))
    for number, text in enumerate(blocks):
        yield Chunk(f"{first.document_id}#{number}", text, starts_document=True)


def _end_of_block(window: str, size: int) -> int:
    if paragraph := PARAGRAPH_END.search(window, size):
        return paragraph.end()
    if line := window.find("\n", size) + 1:
        return line
    return safe_cut(window, len(window)) or len(window)

"""The parts of a text, such as its languages: how each is split, and the text of all of them that a
tokenizer is trained on.

Contract: parts follow each other in the recipe's order, and each has text in both splits. A text
without parts is one, named "".
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from stillhouse.corpus.part_sizes import check_length
from stillhouse.corpus.splits import Splitting, plan_splits
from stillhouse.data.chunks import Chunk, safe_cut
from stillhouse.data.documents import ReadSummary, read_documents
from stillhouse.data.settings import CorpusRecipe, MixtureRecipe
from stillhouse.errors import DataError
from stillhouse.tokens.mixture import drawn_parts, repeats_of


@dataclass(frozen=True)
class Part:
    """A part of a text, and how it is split."""

    name: str
    corpus: CorpusRecipe
    splitting: Splitting
    offline: bool

    def chunks(self, summary: ReadSummary | None = None) -> Iterator[Chunk]:
        """All of its text, cut as it is split; counts blank documents."""
        chunks = read_documents(self.corpus, offline=self.offline, summary=summary)
        with source_called(self.name):
            yield from self.splitting.cut(chunks)

    def training_chunks(self) -> Iterator[Chunk]:
        """The text of its training split."""
        return (chunk for chunk in self.chunks() if not self.splitting.is_validation(chunk))


def plan_parts(corpus: CorpusRecipe, *, offline: bool) -> list[Part]:
    """Decide how each part of a text is split.

    Raises:
        DataError: text that cannot be read, or a part that is too short for two splits.
        NetworkError: a hub dataset while offline or without a connection.
    """
    parts = []
    for name, own in corpus.parts.items():
        with source_called(name):
            parts.append(Part(name, own, plan_splits(own, offline=offline), offline))
    return parts


@contextmanager
def source_called(part: str) -> Iterator[None]:
    """Within this context errors on the source of a corpus name the part that it belongs to."""
    try:
        yield
    except DataError as error:
        if not part:
            raise
        raise DataError(str(error).replace("corpus.source", f"corpus.source.{part}")) from error


def text_of_training(
    parts: Sequence[Part], mixture: MixtureRecipe | None, most_bytes: int
) -> Iterator[Chunk]:
    """About the first `most_bytes` of the training split; of a text with parts as much of each as
    the mixture draws, with their sizes in bytes for those in tokens, which are not known yet.

    Raises:
        DataError: weights that draw far more than the text has.
    """
    if [part.name for part in parts] == [""]:
        yield from _first(parts[0], most_bytes)
        return
    sizes = {
        part.name: sum(len(chunk.text.encode()) for chunk in part.training_chunks())
        for part in parts
    }
    check_length(drawn_parts(sizes, mixture))
    wanted = wanted_bytes(sizes, mixture, most_bytes)
    for part in parts:
        yield from _drawn(part, wanted[part.name])


def wanted_bytes(
    sizes: Mapping[str, int], mixture: MixtureRecipe | None, most_bytes: int
) -> dict[str, int]:
    """How much of each part is drawn: what an epoch has of it, at most `most_bytes` in all."""
    repeats = repeats_of(sizes, mixture)
    drawn = {name: repeats[name] * size for name, size in sizes.items()}
    scale = min(1.0, most_bytes / sum(drawn.values()))
    return {name: round(scale * size) for name, size in drawn.items()}


def _first(part: Part, most_bytes: int) -> Iterator[Chunk]:
    left = most_bytes
    for chunk in part.training_chunks():
        yield chunk
        left -= len(chunk.text.encode())
        if left <= 0:
            return


def _drawn(part: Part, num_bytes: int) -> Iterator[Chunk]:
    """The text of a part from its beginning, again and again; the last chunk is cut."""
    left = num_bytes
    while left > 0:
        for chunk in part.training_chunks():
            size = len(chunk.text.encode())
            if size > left:
                cut = len(chunk.text) * left // size
                text = chunk.text[: safe_cut(chunk.text, cut) or cut]
                yield Chunk(chunk.document_id, text, chunk.starts_document)
                return
            yield chunk
            left -= size
            if not left:
                return

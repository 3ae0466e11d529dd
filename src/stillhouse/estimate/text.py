"""How many tokens a recipe's text has, from a part of it where it is not prepared yet."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from stillhouse.corpus.splits import plan_splits
from stillhouse.data.chunks import Chunk
from stillhouse.data.documents import describe_sources, read_documents, summarize_sources
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import source_of
from stillhouse.evaluation.quality import read_text
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.tokenizer import text_encoder

MOST_BYTES = 16 * 10**6  # read; of a longer text the rest is taken to be alike
BEGINNING, MOST_BEGINNINGS = 2_000, 300  # characters of a document that are tokenized
PLAIN = {"text"}  # formats whose files are as large as their text


@dataclass(frozen=True)
class TextSize:
    """Tokens of the splits, and of a document of the validation split on average."""

    train_tokens: int
    validation_tokens: int
    document_tokens: int | float


@dataclass
class _Counts:
    bytes: int = 0
    documents: int = 0
    beginnings: list[str] = field(default_factory=list)

    def add(self, piece: Chunk) -> None:
        self.bytes += len(piece.text.encode())
        self.documents += piece.starts_document
        if piece.starts_document and len(self.beginnings) < MOST_BEGINNINGS:
            self.beginnings.append(piece.text[:BEGINNING])


def text_size(
    corpus: CorpusRecipe,
    run: RunFolder | None,
    tokenizer: PreTrainedTokenizerFast | None,
    *,
    offline: bool,
) -> TextSize | str:
    """The size of the text, or why it is not known.

    Raises:
        DataError: text that cannot be read.
    """
    manifest = None if run is None else read_manifest(run.tokens)
    if manifest is not None:
        train, validation = (manifest.facts["splits"][name] for name in ("train", "validation"))
        mean = validation["tokens"] / max(1, validation["documents"])
        return TextSize(train["tokens"], validation["tokens"], mean)
    if any(source_of(source).is_remote for source in corpus.sources):
        return "the text is a dataset of the hub, whose size is known once it is prepared"
    if tokenizer is None:
        return "the tokenizer is trained by the run, so the number of tokens is known only then"
    return _estimated_size(corpus, tokenizer, offline=offline)


def _estimated_size(
    corpus: CorpusRecipe, tokenizer: PreTrainedTokenizerFast, *, offline: bool
) -> TextSize | str:
    splitting = plan_splits(corpus, offline=offline)
    counts = {False: _Counts(), True: _Counts()}
    is_whole = True
    for piece in splitting.cut(read_documents(corpus, offline=offline)):
        counts[splitting.is_validation(piece)].add(piece)
        if sum(each.bytes for each in counts.values()) > MOST_BYTES:
            is_whole = False
            break
    factor = 1.0
    read = sum(each.bytes for each in counts.values())
    if not is_whole:
        if not {*summarize_sources(corpus).files} <= PLAIN:
            return (
                "the text is long and not in plain files, so its size is known once it is prepared"
            )
        factor = sum(each["size_bytes"] for each in describe_sources(corpus)) / read
    ratio = bytes_per_token(tokenizer, [*counts[True].beginnings, *counts[False].beginnings])
    train, validation = (round(factor * counts[side].bytes / ratio) for side in (False, True))
    if not is_whole:  # what is held out may be anywhere
        validation = round(splitting.limit * factor * read / ratio)
        train = round(factor * read / ratio) - validation
    documents = max(1, counts[True].documents + counts[False].documents)
    mean = read / documents / ratio
    if counts[True].documents:
        mean = counts[True].bytes / counts[True].documents / ratio
    return TextSize(train, validation, mean)


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """Of a sample of texts."""
    texts = list(texts)
    tokens = sum(map(len, text_encoder(tokenizer)(texts)))
    return sum(len(text.encode()) for text in texts) / max(1, tokens)


def file_tokens(path: Path, tokenizer: PreTrainedTokenizerFast) -> float:
    """About how many tokens a text file has."""
    text = read_text(path)
    return len(text.encode()) / bytes_per_token(tokenizer, [text[: 10 * BEGINNING]])

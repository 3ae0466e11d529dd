"""The text on which importance is measured: training sequences of the run, or a source."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.data.documents import describe_sources, read_documents
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import check_access
from stillhouse.errors import DataError, RecipeError
from stillhouse.families.registry import family_of
from stillhouse.runs.manifest import fingerprint, fingerprint_of
from stillhouse.runs.paths import RunFolder
from stillhouse.student.settings import ImportanceRecipe
from stillhouse.tokens.batches import Batch, SequenceSource
from stillhouse.tokens.mixture import as_drawn
from stillhouse.tokens.packing import open_source, pack
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.tokens.shards import TokenSplit
from stillhouse.tokens.tokenizer import num_ids, open_tokenizer, special_tokens, text_encoder

TOKENS_PER_BATCH = 4_096
SEQUENCE_LENGTH = 1_024  # by default
KEY = "student.importance.text"
SEED = 0  # of the masks of masked language modeling


@dataclass(frozen=True)
class Calibration:
    """About `tokens` tokens of a source, in sequences spread evenly over it."""

    source: SequenceSource
    tokens: int

    @property
    def sequences(self) -> np.ndarray:
        """The numbers of the sequences."""
        total = self.source.num_sequences
        number = max(1, min(total, self.tokens // self.source.sequence_length))
        return np.arange(number) * total // number

    @property
    def num_tokens(self) -> int:
        return sum(batch.num_rows("all") for batch in self.batches())

    def batches(self) -> Iterator[Batch]:
        """The sequences in order, a few at a time."""
        size = max(1, TOKENS_PER_BATCH // self.source.sequence_length)
        for start in range(0, len(self.sequences), size):
            numbers = self.sequences[start : start + size]
            yield self.source.batch(numbers, np.zeros_like(numbers), SEED)


def calibration_of(
    recipe: ImportanceRecipe,
    tokens: TokensRecipe,
    folder: Path,
    teacher: PretrainedConfig,
    *,
    offline: bool,
) -> Calibration:
    """The recipe's text, with the tokenizer of a run, in sequences of `sequence_length_of`.

    Args:
        folder: The run's tokens.

    Raises:
        DataError: text that cannot be read.
    """
    tokens = tokens.model_copy(update={"sequence_length": sequence_length_of(recipe, teacher)})
    if recipe.text == "corpus":
        source = as_drawn(open_source(folder, tokens, "train"), folder)
        return Calibration(source, recipe.tokens)
    return read_calibration(recipe, tokens, open_tokenizer(folder), key=KEY, offline=offline)


def sequence_length_of(recipe: ImportanceRecipe, teacher: PretrainedConfig) -> int:
    """Tokens of a sequence.

    Raises:
        RecipeError: more than the teacher takes.
    """
    most = family_of(teacher).num_positions(teacher)
    if recipe.sequence_length is None:
        return min(SEQUENCE_LENGTH, most)
    if recipe.sequence_length > most:
        raise RecipeError(
            f"student.importance.sequence_length is {recipe.sequence_length:,}, but the teacher "
            f"has {most:,} positions. Set it to at most {most:,}."
        )
    return recipe.sequence_length


def read_calibration(
    recipe: ImportanceRecipe,
    tokens: TokensRecipe,
    tokenizer: PreTrainedTokenizerFast,
    *,
    key: str,
    offline: bool,
) -> Calibration:
    """The first documents of `recipe.text`, a source.

    Args:
        key: What errors call the source.

    Raises:
        DataError: text that cannot be read.
    """
    encode = text_encoder(tokenizer)
    special = special_tokens(tokenizer, tokens.language_modeling)
    prefix = special.document_prefix if tokens.language_modeling == "causal" else ()
    documents: list[list[np.ndarray]] = []
    number = 0
    with _source_called(key):
        for chunk in read_documents(CorpusRecipe(source=recipe.text), offline=offline):
            if chunk.starts_document:
                documents.append([np.array(prefix, np.int64)])
            documents[-1] += encode([chunk.text])
            number += len(documents[-1][-1])
            if number > recipe.tokens:
                break
    if not number:
        raise DataError(f"{key} {recipe.text} has no tokens. Give a source with text in it.")
    split = TokenSplit.in_memory([np.concatenate(each) for each in documents], num_ids(tokenizer))
    return Calibration(pack(split, tokenizer, tokens), recipe.tokens)


def calibration_sources(recipe: ImportanceRecipe, run: RunFolder) -> dict[str, str]:
    """Fingerprints of the run's tokens, and of the text if it is another one.

    Raises:
        DataError: there is no such file.
    """
    sources = {"tokens": fingerprint_of(run.tokens)}
    if recipe.text != "corpus":
        sources["importance"] = text_fingerprint(recipe)
    return sources


def text_fingerprint(recipe: ImportanceRecipe) -> str:
    """A hash of the sizes and times of the files of `recipe.text`; reads no text.

    Raises:
        DataError: there is no such file.
    """
    with _source_called(KEY):
        return fingerprint(describe_sources(CorpusRecipe(source=recipe.text)))


def check_text(importance: ImportanceRecipe, teacher: PretrainedConfig, *, offline: bool) -> None:
    """Check that the text to measure on is there, where the recipe names one, and that the teacher
    takes its sequences; reads none.

    Raises:
        DataError, NetworkError: it cannot be read.
        RecipeError: sequences that are too long.
    """
    sequence_length_of(importance, teacher)
    if importance.text != "corpus":
        check_source(importance.text, KEY, offline=offline)


def check_source(source: str, key: str, *, offline: bool) -> None:
    """Check that a source is there, before a model is loaded; reads no text.

    Args:
        key: What errors call the source.

    Raises:
        DataError, NetworkError: it cannot be read.
    """
    with _source_called(key):
        describe_sources(CorpusRecipe(source=source))
    check_access(source, key, offline=offline)


@contextmanager
def _source_called(key: str) -> Iterator[None]:
    """Within this context errors on a corpus name its source by another key."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace("corpus.source", key)) from error

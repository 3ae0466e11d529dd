"""Leave out documents that contain a part of an evaluation set, so that its scores stay honest.

A document is left out if it shares a run of `run_words` consecutive words with a text of the
evaluation sets (Brown et al. 2020, appendix C, with 13 words). A text that is shorter than a run
counts as found where all of it occurs, if it has at least `min_words` words.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from stillhouse.cleaning.hash_set import HashSet
from stillhouse.cleaning.step import Judge, Page, Step, existing_file
from stillhouse.cleaning.words import hash_runs, hash_words, words_of
from stillhouse.data.formats import TableFile, named_format
from stillhouse.errors import DataError
from stillhouse.section import Section


class ContaminationRecipe(Section):
    """Evaluation sets that the text must not contain."""

    files: list[str] = Field(min_length=1)
    """Files of the evaluation sets, in any format of tasks; every field with text counts."""
    run_words: PositiveInt = 13
    """Words of a run that a document must not share with them."""
    min_words: PositiveInt = 8
    """Fewest words of a text that is shorter than a run."""


@dataclass(frozen=True)
class EvaluationTexts:
    """Hashes of the texts of evaluation sets.

    Attributes:
        runs: Of each run of `run_words` words.
        heads: Of the first `min_words` words of each text that is shorter than a run.
        short: Of each such text, by its number of words.
    """

    settings: ContaminationRecipe
    runs: HashSet
    heads: HashSet
    short: dict[int, HashSet]

    def occur_in(self, words: Sequence[str]) -> bool:
        """Whether a document of these words shares a run, or contains a short text."""
        hashes = hash_words(words)
        if self.runs.contains(hash_runs(hashes, self.settings.run_words)).any():
            return True
        if not self.short:
            return False
        starts = np.flatnonzero(self.heads.contains(hash_runs(hashes, self.settings.min_words)))
        return any(
            texts.contains(hash_runs(hashes[start : start + length], length)).any()
            for start in starts.tolist()
            for length, texts in self.short.items()
        )


def make(settings: ContaminationRecipe) -> Judge:
    texts = evaluation_texts(settings)

    def judge(page: Page) -> str | None:
        if texts.occur_in(words_of(page.text)):
            return "contains a part of an evaluation set"
        return None

    return judge


def evaluation_texts(settings: ContaminationRecipe) -> EvaluationTexts:
    """The texts of the files.

    Raises:
        DataError: a file that is not there or cannot be read, or no text that is long enough.
    """
    runs: list[np.ndarray] = []
    heads: list[np.ndarray] = []
    short: dict[int, list[np.ndarray]] = defaultdict(list)
    for path in files(settings):
        for text in _texts_of(path):
            hashes = hash_words(words_of(text))
            if len(hashes) >= settings.run_words:
                runs.append(hash_runs(hashes, settings.run_words))
            elif len(hashes) >= settings.min_words:
                heads.append(hash_runs(hashes[: settings.min_words], settings.min_words))
                short[len(hashes)].append(hash_runs(hashes, len(hashes)))
    if not runs and not short:
        least = min(settings.min_words, settings.run_words)
        raise DataError(
            f"cleaning.contamination.files {', '.join(settings.files)!r:.200} hold no text of at "
            f"least {least} words. Give files with the texts of evaluation sets."
        )
    by_length = {length: _set_of(texts) for length, texts in sorted(short.items())}
    return EvaluationTexts(settings, _set_of(runs), _set_of(heads), by_length)


def _set_of(hashes: Sequence[np.ndarray]) -> HashSet:
    return HashSet(np.concatenate(hashes) if hashes else np.zeros(0, np.uint64))


def _texts_of(path: Path) -> Iterator[str]:
    format = named_format(path)
    if format.read_text is not None:
        yield from "".join(format.read_text(path)).split("\n\n")
    elif format.read_records is not None:
        for record in format.read_records(TableFile(path, str(path))):
            yield from _strings(record.fields)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        # The words of a sentence, or several texts.
        if value and all(isinstance(each, str) and " " not in each for each in value):
            yield " ".join(value)
        else:
            for each in value:
                yield from _strings(each)


def files(settings: ContaminationRecipe) -> Iterable[Path]:
    return [existing_file(name, "cleaning.contamination.files") for name in settings.files]


STEP = Step(ContaminationRecipe, make, files)

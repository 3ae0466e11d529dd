"""Leave out documents that contain a part of an evaluation set, so that its scores stay honest.

A document is left out if it shares a run of `run_words` consecutive words with a text of the
evaluation sets (Brown et al. 2020, appendix C, with 13 words). A text that is shorter than a run
counts as found where all of it occurs, if it has at least `min_words` words.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from stillhouse.cleaning.step import Judge, Page, Step
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


def make(settings: ContaminationRecipe) -> Judge:
    known = known_runs(settings)

    def judge(page: Page) -> str | None:
        hashes = hash_words(words_of(page.text))
        for length, runs in known.items():
            found = hash_runs(hashes, length)
            place = np.searchsorted(runs, found)
            if (runs[np.minimum(place, len(runs) - 1)] == found).any():
                return "contains a part of an evaluation set"
        return None

    return judge


def known_runs(settings: ContaminationRecipe) -> dict[int, np.ndarray]:
    """The hashes of the runs of the evaluation sets by their length, rising."""
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    for path in files(settings):
        for text in _texts_of(path):
            hashes = hash_words(words_of(text))
            length = min(len(hashes), settings.run_words)
            if length >= min(settings.min_words, settings.run_words):
                found[length].append(np.unique(hash_runs(hashes, length)))
    if not found:
        raise DataError(
            f"cleaning.contamination.files {', '.join(settings.files)!r:.200} hold no text of at "
            f"least {settings.min_words} words. Give files with the texts of evaluation sets."
        )
    return {length: np.unique(np.concatenate(runs)) for length, runs in found.items()}


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
    for name in settings.files:
        path = Path(name).expanduser()
        if not path.is_file():
            raise DataError(f"cleaning.contamination.files: there is no file {name!r:.200}.")
        yield path


STEP = Step(ContaminationRecipe, make, files)

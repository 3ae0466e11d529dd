"""The language of a text, by the model inside the package py3langid (Lui and Baldwin 2012,
"langid.py: An Off-the-shelf Language Identification Tool")."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

# Of a longer text this many parts say it, which are as far from each other as they can be: its
# start alone may be of another language, such as a quotation or a menu.
PARTS = 4
PART_CHARACTERS = 500
KNOWN_ABOVE = 0.5  # the probability above which a language counts as known


@cache
def _identifier() -> Any:
    from stillhouse.data.language_identifier import FastIdentifier

    return FastIdentifier.load()


def identify(text: str) -> tuple[str, float]:
    """The ISO 639-1 code of a text's most probable language, and its probability."""
    code, probability = _identifier().classify(sample_of(text))
    return code, float(probability)


def known_languages() -> set[str]:
    """The ISO 639-1 codes of the languages that `identify` tells apart."""
    return {*_identifier().labels}


def sample_of(text: str) -> str:
    """A text, or `PARTS` parts of a longer one: its start, its end, and between them."""
    if len(text) <= PARTS * PART_CHARACTERS:
        return text
    step = (len(text) - PART_CHARACTERS) / (PARTS - 1)
    starts = [round(number * step) for number in range(PARTS)]
    return " ".join(text[start : start + PART_CHARACTERS] for start in starts)


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, or None where none is likely, as of code."""
    code, probability = identify(text)
    return code if probability > KNOWN_ABOVE else None


def main_language(texts: Iterable[str]) -> str | None:
    """The most frequent language of texts; None where most are of none."""
    ((code, _),) = Counter(map(language_of, texts)).most_common(1)
    return code

"""The language of a text, by the model inside the package py3langid (Lui and Baldwin 2012,
"langid.py: An Off-the-shelf Language Identification Tool")."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

MOST_CHARACTERS = 20_000  # of a long text, the first ones say it
KNOWN_ABOVE = 0.5  # the probability above which a language counts as known


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """The ISO 639-1 code of a text's most probable language, and its probability."""
    code, probability = _identifier().classify(text[:MOST_CHARACTERS])
    return code, float(probability)


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, or None where none is likely, as of code."""
    code, probability = identify(text)
    return code if probability > KNOWN_ABOVE else None


def main_language(texts: Iterable[str]) -> str | None:
    """The most frequent language of texts; None where most are of none."""
    ((code, _),) = Counter(map(language_of, texts)).most_common(1)
    return code

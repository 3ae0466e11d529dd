"""Keep documents of some languages, as the model inside the package py3langid finds them, or a
fastText model that the recipe names."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from stillhouse.cleaning.step import Judge, Page, Step, existing_file
from stillhouse.data.language import identify, known_languages, sample_of
from stillhouse.errors import RecipeError
from stillhouse.section import Section, UnitInterval

CODE = re.compile("[a-z]{2,3}")
NONE = "none"  # the language of a text of which no language is probable enough


def _code(name: str) -> str:
    if not CODE.fullmatch(name):
        raise ValueError(f"{name!r} is no language; give a code of ISO 639-1, such as en")
    return name


class LanguageRecipe(Section):
    """Languages that are kept."""

    keep: list[Annotated[str, AfterValidator(_code)]] = Field(default=["en"], min_length=1)
    """ISO 639-1 codes."""
    min_probability: UnitInterval = 0.65
    """Lowest probability of the language; a higher one costs more short documents than it finds
    wrong ones (docs/guides/corpus.md)."""
    model: str | None = None
    """A fastText model (`lid.176.bin`), which needs the package fasttext; by default py3langid."""


def make(settings: LanguageRecipe) -> Judge:
    kept = {*settings.keep}
    if settings.model is None:
        identifier = identify
        if unknown := sorted(kept - known_languages()):
            raise RecipeError(
                f"cleaning.language.keep names {', '.join(unknown)}, which py3langid does not "
                f"know. It knows {', '.join(sorted(known_languages()))}."
            )
    else:
        identifier = _fasttext(Path(settings.model))

    def judge(page: Page) -> str | None:
        page.language, probability = identifier(page.text)
        if probability < settings.min_probability:
            page.language = ""
            return "no language is probable enough"
        return None if page.language in kept else f"language {page.language}"

    return judge


def _fasttext(path: Path) -> Callable[[str], tuple[str, float]]:
    try:
        import fasttext  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError(
            "cleaning.language.model needs the package fasttext. Install it with `pip install "
            "fasttext-numpy2-wheel`, or leave the key out to use py3langid."
        ) from error
    model = fasttext.load_model(str(path.expanduser()))

    def identify(text: str) -> tuple[str, float]:
        labels, probabilities = model.predict(" ".join(sample_of(text).split()))
        return labels[0].removeprefix("__label__"), float(probabilities[0])

    return identify


def files(settings: LanguageRecipe) -> Iterable[Path]:
    model = settings.model
    return [] if model is None else [existing_file(model, "cleaning.language.model")]


STEP = Step(LanguageRecipe, make, files)

"""The step that keeps documents of some languages; how languages are identified, tests/data has."""

import sys
import types

import pytest
from pydantic import ValidationError

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps.language import LanguageRecipe, files, make
from stillhouse.data.language import identify
from stillhouse.errors import DataError, RecipeError

ENGLISH = "The old man went down to the sea, and the wind had been rising since noon. " * 3
GERMAN = "Die Katze lag auf der Matte, und der Hund schlief vor der Haustür im Regen. " * 3
UNCLEAR = "a1 b2 c3"


def test_documents_of_other_languages_are_left_out():
    judge = make(LanguageRecipe(keep=["de", "fr"]))
    german, english = Page("1", GERMAN), Page("2", ENGLISH)
    assert judge(german) is None
    assert judge(english) == "language en"
    assert (german.language, english.language) == ("de", "en")


def test_a_language_must_be_probable_enough():
    """At its own probability it is kept, and above that not; then its language is unknown."""
    text = "Ein Satz of two languages und more"
    code, probability = identify(text)
    kept, left_out = Page("1", text), Page("2", text)
    assert make(LanguageRecipe(keep=[code], min_probability=probability))(kept) is None
    above = LanguageRecipe(keep=[code], min_probability=min(1.0, probability + 1e-6))
    assert make(above)(left_out) == "no language is probable enough"
    assert (kept.language, left_out.language) == (code, "")


def test_a_language_that_is_not_known_is_an_error():
    with pytest.raises(RecipeError, match=r"keep names xx, .* It knows .*de.*en"):
        make(LanguageRecipe(keep=["en", "xx"]))
    for name in ("english", "EN", ""):
        with pytest.raises(ValidationError):
            LanguageRecipe(keep=[name])


def test_a_fasttext_model_without_its_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(RecipeError, match="pip install"):
        make(LanguageRecipe(model=str(tmp_path / "lid.176.bin")))
    with pytest.raises(DataError, match="there is no file"):
        list(files(LanguageRecipe(model=str(tmp_path / "lid.176.bin"))))


def test_a_fasttext_model_is_asked_for_one_line(monkeypatch, tmp_path):
    """Its package refuses a text with line ends; it is not installed here."""

    class Model:
        def predict(self, text):
            assert "\n" not in text
            return ("__label__de",), [0.9]

    package = types.SimpleNamespace(load_model=lambda path: Model())
    monkeypatch.setitem(sys.modules, "fasttext", package)
    judge = make(LanguageRecipe(keep=["de"], model="lid.176.bin"))
    page = Page("1", "eins\nzwei " * 3000)
    assert judge(page) is None
    assert page.language == "de"

"""Languages of texts."""

import pytest

from stillhouse.data.language import language_of, main_language

TEXTS = {
    "en": "The old man went down to the sea, and the wind had been rising since noon.",
    "de": "Die Katze lag auf der Matte, und der Hund schlief vor der Haustür.",
    "fr": "Rien ne sert de courir, il faut partir à point, disait la tortue.",
    "ja": "昔々あるところにおじいさんとおばあさんが住んでいました。",
    None: "def f(x): return x ** 2",
}


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    """Its model takes two seconds to load, once."""
    language_of("a")


@pytest.mark.parametrize("language", TEXTS)
def test_language_of_a_sentence(language):
    assert language_of(TEXTS[language]) == language


def test_main_language_is_the_most_frequent_one():
    assert main_language([TEXTS["de"], TEXTS["en"], TEXTS["de"]]) == "de"
    assert main_language([TEXTS[None], TEXTS[None], TEXTS["en"]]) is None

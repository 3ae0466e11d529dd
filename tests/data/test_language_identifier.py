"""The fast identifier gives the answers of py3langid."""

import numpy as np
import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier, visit_counts

from stillhouse.data import language
from stillhouse.data.language import PART_CHARACTERS, PARTS, identify, sample_of
from stillhouse.data.language_identifier import LANE

TEXTS = [
    "The old man went down to the sea, and the wind had been rising since noon.",
    "DIE KATZE LAG AUF DER MATTE, UND DER HUND SCHLIEF VOR DER HAUSTÜR.",
    "Rien ne sert de courir, il faut partir à point, disait la tortue. " * 40,
    "昔々あるところにおじいさんとおばあさんが住んでいました。",
    "e\u0301t\u00e9 a\ud800b",
    "1234 5678",
    "\N{GRINNING FACE}" * 30,
    "a",
    "",
    "\0",
]


@pytest.fixture(scope="module")
def ours():
    return language._identifier()


@pytest.fixture(scope="module")
def theirs():
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@pytest.mark.parametrize("text", TEXTS)
def test_language_and_probability_are_those_of_py3langid(ours, theirs, text):
    code, probability = theirs.classify(text)
    assert ours.classify(text) == (code, pytest.approx(probability, abs=1e-5))


def test_features_are_found_across_the_ends_of_lanes(ours, theirs):
    """At every length around those of lanes, each feature as often as by a walk over the bytes."""
    content = TEXTS[2].encode()
    for length in range(1, 3 * LANE + 2):
        features, counts = np.unique(ours.features(content[:length]), return_counts=True)
        walked = visit_counts(
            theirs.tk_nextmove, theirs._rowbase, theirs.tk_output, content[:length]
        )
        assert dict(zip(features.tolist(), counts.tolist(), strict=True)) == dict(walked or {})


def test_a_long_text_is_read_from_its_start_to_its_end():
    """So a beginning in another language does not decide."""
    english, german = TEXTS[0] + " ", "Die Katze lag auf der Matte, und der Hund schlief. "
    text = english * 20 + german * 200
    assert identify(text[: PARTS * PART_CHARACTERS])[0] == "en"
    assert identify(text)[0] == "de"
    sample = sample_of(text)
    assert sample.startswith(text[:PART_CHARACTERS])
    assert sample.endswith(text[-PART_CHARACTERS:])
    assert len(sample) == PARTS * PART_CHARACTERS + PARTS - 1


def test_a_text_of_the_size_of_the_sample_is_read_whole():
    text = "x" * (PARTS * PART_CHARACTERS)
    assert sample_of(text) == text

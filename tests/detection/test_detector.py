"""A detector: its threshold, what it answers, and its file."""

import json

import numpy as np
import pytest

from stillhouse.detection.detector import (
    Detector,
    common_share,
    common_words_of,
    fewest_common,
    fit_length,
    judge,
    read_detector,
    threshold_of,
)
from stillhouse.detection.features import FEATURES, TokenStatistics
from stillhouse.detection.fit import parse_lengths
from stillhouse.errors import DataError, OptionError

ENGLISH = "the cat sat on the mat and the dog lay in the sun by the door of the house"
GERMAN = "die Katze lag auf der Matte und der Hund lag in der Sonne vor der Haustür"


def tokens_of(log_probability, number=40):
    """A text whose tokens are all this likely; the expected log-probability is -3."""
    generator = np.random.default_rng(number)
    values = log_probability + generator.normal(0, 0.3, number)
    ranks = np.maximum(1, np.round(np.exp(-values)))
    return TokenStatistics(values, ranks, np.full(number, -3.0), np.full(number, 2.0))


def rows(level, count, seed):
    generator = np.random.default_rng(seed)
    return level + generator.normal(size=(count, len(FEATURES)))


@pytest.fixture
def detector():
    """Fitted on human texts of 30 and 60 tokens whose log-probability is about -4, and machine
    texts of about -2."""
    from stillhouse.detection.features import features_at

    def features(level, length, count):
        generator = np.random.default_rng(length)
        return features_at(
            [tokens_of(level + each, length) for each in generator.normal(0, 0.5, count)], length
        )

    return Detector(
        model="sample",
        model_sha256="0",
        language="en",
        common_words=common_words_of([ENGLISH]),
        fewest_common=0.2,
        fits=tuple(
            fit_length(length, features(-4, length, 120), features(-2, length, 30))
            for length in (30, 60)
        ),
        sources={"human": ["h.jsonl"], "machine": ["m.jsonl"]},
        protocol={},
    )


def test_threshold_is_exceeded_by_one_percent_of_further_human_texts():
    """Of many fits on 99 or 250 scores, the mean fraction of new scores above it is at most 1 %,
    and no less than that with one text fewer above."""
    generator = np.random.default_rng(0)
    for number in (99, 250):
        above = [1 - threshold_of(generator.random(number)) for _ in range(4_000)]
        assert np.mean(above) == pytest.approx(
            np.floor(0.01 * (number + 1)) / (number + 1), rel=0.1
        )
        assert np.mean(above) <= 0.0105


def test_threshold_is_not_that_of_the_texts_it_was_fitted_on():
    """Features without a difference: a regression of its own texts tells some of them, so their
    threshold would be too low; that of other folds is near 0."""
    human, machine = rows(0, 100, 1), rows(0, 100, 2)
    found = fit_length(50, human, machine)
    fraction = (found.log_odds(rows(0, 20_000, 3)) > found.threshold).mean()
    assert fraction < 0.03


@pytest.mark.parametrize(("level", "verdict"), [(-2.0, "machine"), (-4.0, "not machine")])
def test_texts_like_the_fitted_ones_are_told_apart(detector, level, verdict):
    found = judge(detector, ENGLISH, tokens_of(level))
    assert (found.verdict, found.fitted_tokens, found.reason) == (verdict, 30, "")
    assert found.probability is not None
    assert found.threshold is not None
    assert (found.probability > found.threshold) == (verdict == "machine")


def test_the_longest_fitted_length_that_a_text_has_judges_it(detector):
    lengths = [judge(detector, ENGLISH, tokens_of(-2, n)).fitted_tokens for n in (30, 59, 60, 900)]
    assert lengths == [30, 30, 60, 60]


def test_short_text_is_not_judged(detector):
    found = judge(detector, ENGLISH, tokens_of(-2, 29))
    assert (found.verdict, found.probability) == ("cannot tell", None)
    assert found.reason == "it has 29 tokens; the shortest fitted texts have 30"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GERMAN, "its language seems to be de, and the detector was fitted on en"),
        ("Rien ne sert de courir, il faut partir à point.", "its language seems to be fr"),
        ("def f(x): return x ** 2", "it does not read like the fitted texts: 0% of its words"),
        ("12 34", "it does not read like the fitted texts"),
    ],
)
def test_text_unlike_the_fitted_ones_is_not_judged(detector, text, reason):
    found = judge(detector, text, tokens_of(-2))
    assert (found.verdict, found.probability) == ("cannot tell", None)
    assert found.reason.startswith(reason)


def test_common_words_are_counted_without_case_and_punctuation():
    common = common_words_of(["The the, THE. of of cat"])
    assert common == ("the", "of", "cat")
    assert common_share("The dog: of. X", common) == 0.5
    assert common_share("...", common) == 0
    assert fewest_common([ENGLISH] * 9, common_words_of([ENGLISH]), 8) == 0.5


@pytest.mark.parametrize(
    ("num_human", "num_machine", "words"),
    [
        (98, 20, "98 human texts have 50 tokens or more; at least 99"),
        (99, 1, "1 machine text has 50 tokens or more; at least 20"),
    ],
)
def test_too_few_texts_are_refused(num_human, num_machine, words):
    with pytest.raises(DataError, match=words):
        fit_length(50, rows(0, num_human, 0), rows(1, num_machine, 1))


def test_detector_is_the_same_after_its_file(detector, tmp_path):
    file = tmp_path / "detector.json"
    file.write_text(detector.model_dump_json())
    assert read_detector(file) == detector


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version: Input should be 1"),
        ({"fits": None}, "fits: "),
        ({"features": ["log_rank"]}, "was fitted on the features log_rank"),
        ({"fits": []}, "fits"),
    ],
)
def test_detector_of_another_version_is_one_message(detector, tmp_path, change, words):
    file = tmp_path / "detector.json"
    file.write_text(json.dumps({**json.loads(detector.model_dump_json()), **change}))
    with pytest.raises(DataError, match=words) as error:
        read_detector(file)
    assert "Fit it again" in str(error.value)


def test_detector_that_is_no_json_or_not_there(tmp_path):
    file = tmp_path / "detector.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_detector(file)
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="not a detector"):
        read_detector(file)


def test_lengths_are_ascending_numbers():
    assert parse_lengths("500, 50,150,50") == [50, 150, 500]
    for text in ("", "50;150", "5", "-50", "fifty"):
        with pytest.raises(OptionError, match="--lengths"):
            parse_lengths(text)

"""The benchmarks of extraction and languages: their scores, and the tables of their results."""

import math

import numpy as np
import pytest
from benchmarks.bag_of_runs import precision_and_recall
from benchmarks.extraction import chosen_on_halves, difference, measures, other_limits
from benchmarks.language_id import joined
from docs.cleaning_results import extraction_of, languages_of, step_speeds_of, worst_of

SETTING = {"value": 0.9, "low": 0.8, "high": 0.95}


@pytest.mark.parametrize(
    ("text", "gold", "precision", "recall"),
    [
        ("a b c d e", "a b c d e", 1, 1),
        ("A, b; c-d. e!", "A b c d e", 1, 1),  # marks do not count
        ("a b c d", "A b c d", 0, 0),  # case does
        ("a b c d e f", "a b c d e", 2 / 3, 1),
        ("a b c d a b c d", "a b c d", 1 / 5, 1),  # a run that is too often there counts as wrong
        ("a b c d", "a b c d a b c d", 1, 1 / 5),
        ("a b", "a b", 1, 1),  # shorter than a run
        ("a b", "a b c d", 0, 0),
        ("", "a b c d", math.nan, 0),
        ("a b c d", "", 0, math.nan),
    ],
)
def test_precision_and_recall_of_a_page(text, gold, precision, recall):
    assert precision_and_recall(text, gold) == pytest.approx((precision, recall), nan_ok=True)


def test_f1_is_that_of_the_mean_precision_and_recall():
    """A page without a prediction counts for recall alone."""
    scores = np.array([[1.0, 0.5], [math.nan, 0.0], [0.5, 1.0]])
    ((f1, precision, recall),) = measures(scores, np.arange(3)[None])
    assert (precision, recall) == (0.75, 0.5)
    assert f1 == pytest.approx(2 * 0.75 * 0.5 / 1.25)


def test_a_difference_is_paired():
    """A setting that is better on every page by as much has an interval without width."""
    draw = np.random.default_rng(0)
    second = np.repeat(draw.uniform(0.2, 0.8, (50, 1)), 2, axis=1)
    found = difference(second + 0.1, second, draw.integers(0, 50, (200, 50)))
    assert [*found.values()] == pytest.approx([0.1, 0.1, 0.1])


def test_the_best_setting_is_chosen_on_one_half_and_scored_on_the_other():
    """The better of two settings, whose pages are alike, is chosen on nearly all halves."""
    draw = np.random.default_rng(1)
    scores = {
        name: np.clip(draw.normal(mean, 0.05, (60, 2)), 0, 1)
        for name, mean in (("good", 0.8), ("poor", 0.75))
    }
    found = chosen_on_halves(scores)
    assert found["chosen"]["good"] > 0.95 * found["halves"]
    assert found["f1_held_out"] == pytest.approx(0.8, abs=0.02)


def test_limits_choose_between_two_runs_of_each_page():
    html = [f"<html><body><p>{'word ' * 200}</p></body></html>"] * 2
    texts = {"fast, precision": ["x" * 100, "x" * 900]}
    scores = {
        "fast, precision": np.array([[0.2, 0.2], [0.9, 0.9]]),
        "precision": np.array([[0.6, 0.6], [0.5, 0.5]]),
    }
    found = {
        (each["characters"], each["share"]): each for each in other_limits(texts, scores, html)
    }
    assert found[0, 0.0]["f1"] == pytest.approx(0.55)
    assert found[250, 0.05]["f1"] == pytest.approx(0.75)
    assert found[250, 0.05]["again"] == 0.5
    assert found[10**9, 0.0]["f1"] == pytest.approx(0.55)


def test_sentences_are_joined_to_texts_of_one_length():
    texts = joined(["one two", "three", "four five six", "seven"], 10, 5)
    assert texts == ["one two th", "four five "]


def test_tables_of_the_guide():
    settings = {name: dict.fromkeys(("f1", "precision", "recall"), SETTING) for name in ("fast",)}
    assert "trafilatura, fast | 0.900 (0.800 to 0.950) | 0.900" in extraction_of(
        {"settings": settings}
    )
    page = {"page": "unknown", "url": "https://www.a.example/b", "f1": 0.5, "precision": 1}
    assert "| a.example | 0.50 | 1.00 | 0.25 | Not looked at. |" in worst_of(
        [{**page, "recall": 0.25}]
    )
    threshold = {"kept": 0.98, "kept_least": 0.9, "wrong": 0.001}
    own = {
        "accuracy": {"de": 1.0, "en": 0.9},
        "thresholds": dict.fromkeys(("0.5", "0.65", "0.8", "0.9"), threshold),
    }
    row = "| XNLI, 7 languages | 1,000 | 95.0 % | 90.0 % (en) | 98.0 %, 0.10 % |"
    assert row in languages_of({"xnli": {"1000": own}, "novels": {"1000": own}})
    speeds = {"gopher": {"novels": {"stillhouse": 5.0, "datatrove": 1.25}}}
    assert "| `gopher` | novels | 5.0 | datatrove 1.2 |" in step_speeds_of(speeds)

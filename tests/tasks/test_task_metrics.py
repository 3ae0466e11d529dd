"""Metrics: the field's definitions, held against what they say by hand; intervals that cover."""

import sys

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
import sklearn.metrics

from stillhouse.errors import RecipeError
from stillhouse.tasks.metrics import (
    GLUE,
    METRICS,
    Measure,
    glue_scores,
    span_counts,
    span_f1,
)

PREDICTED = np.array([1, 1, 0, 0, 1, 0, 1, 1])
RIGHT = np.array([1, 0, 0, 1, 1, 0, 1, 0])  # 3 true and 2 false positives, 2 true, 1 false negative


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 5 / 8),
        ("f1", 2 * 3 / (2 * 3 + 2 + 1)),
        ("accuracy_and_f1", (5 / 8 + 2 / 3) / 2),
        ("matthews", (3 * 2 - 2 * 1) / np.sqrt((3 + 2) * (3 + 1) * (2 + 2) * (2 + 1))),
    ],
)
def test_classes_by_their_definition(name, expected):
    """From the counts of right and wrong."""
    assert METRICS[name](PREDICTED, RIGHT) == pytest.approx(expected)


def test_correlations_by_their_definition():
    """Pearson of the values, and of their ranks, ties sharing one."""
    predicted, right = np.array([0.1, 0.9, 0.4, 0.4, 0.7]), np.array([0.0, 4.0, 1.0, 2.0, 5.0])
    ranks = np.array([1, 5, 2.5, 2.5, 4]), np.array([1, 4, 2, 3, 5])
    pearson = np.corrcoef(predicted, right)[0, 1]
    spearman = np.corrcoef(*ranks)[0, 1]
    assert METRICS["pearson"](predicted, right) == pytest.approx(pearson)
    assert METRICS["spearman"](predicted, right) == pytest.approx(spearman)
    both = METRICS["pearson_and_spearman"](predicted, right)
    assert both == pytest.approx((pearson + spearman) / 2)


@pytest.mark.parametrize("name", ["f1", "matthews", "pearson", "spearman"])
def test_a_model_that_always_says_the_same_scores_nothing(name):
    """Zero, not NaN and not a warning."""
    assert METRICS[name](np.zeros(4, int), np.array([0, 1, 0, 1])) == 0.0


@pytest.mark.parametrize("library", ["scipy.stats", "seqeval.scheme"])
def test_without_its_libraries_a_metric_says_what_to_install(monkeypatch, library):
    """They come with an extra."""
    monkeypatch.setitem(sys.modules, library, None)
    ask = {
        "scipy.stats": lambda: METRICS["spearman"](PREDICTED, RIGHT),
        "seqeval.scheme": lambda: span_counts([["O"]], [["O"]], strict=True),
    }
    with pytest.raises(RecipeError, match=r"pip install 'stillhouse\[tasks\]'"):
        ask[library]()


def test_glue_is_given_with_and_without_wnli():
    """The published macro scores include it: 79.5 of BERT is 82.75 without."""
    bert = {"cola": 56.3, "mnli": 84.7, "mrpc": 88.6, "qnli": 91.8, "qqp": 89.6}
    bert |= {"rte": 69.3, "sst2": 92.7, "stsb": 89.0}
    assert glue_scores(bert) == {"macro": None, "macro_without_wnli": pytest.approx(82.75)}
    whole = glue_scores(bert | {"wnli": 53.5})
    assert whole["macro"] == pytest.approx(79.5, abs=0.01)
    assert glue_scores({"sst2": 92.7}) == {"macro": None, "macro_without_wnli": None}
    assert set(GLUE.values()) <= set(METRICS)


def spans(predicted, right) -> dict[str, float]:
    found = {}
    for name in ("strict", "default"):
        counts = span_counts(predicted, right, strict=name == "strict")
        found[name] = span_f1(counts, counts)
    return found


def test_spans_count_where_both_ends_and_the_kind_are_right():
    """Two of three predicted, two of three there; strict takes no span that begins with I-."""
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "I-ORG"]]
    predicted = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "O"]]
    assert spans(predicted, right) == pytest.approx({"strict": 2 / 3, "default": 2 / 3})
    loose = [["B-PER", "I-PER", "O", "I-LOC"], ["O", "B-ORG", "I-ORG"]]
    assert spans(loose, right) == pytest.approx({"strict": 0.8, "default": 1.0})
    assert spans([["O"]], [["O"]]) == {"strict": 0.0, "default": 0.0}


def test_spans_over_many_sentences_are_those_of_the_library():
    """Random tags, among them ones that no scheme allows: seqeval's own F1, in both modes."""
    draw = np.random.default_rng(2)
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    sentences = [[[tags[n] for n in draw.integers(0, 5, size)] for size in draw.integers(1, 9, 80)]
                 for _ in range(2)]  # fmt: skip
    predicted = [
        row[: len(true)] + ["O"] * (len(true) - len(row))
        for row, true in zip(*sentences, strict=True)
    ]
    right = sentences[1]
    found = spans(predicted, right)
    assert found["default"] == pytest.approx(seqeval.metrics.f1_score(right, predicted))
    strict = seqeval.metrics.f1_score(right, predicted, mode="strict", scheme=seqeval.scheme.IOB2)
    assert found["strict"] == pytest.approx(strict)
    assert found["strict"] != found["default"]


def test_f1_of_several_labels_counts_them_together():
    """2 of 3 predicted are right, 2 of 4 are found."""
    predicted = np.array([[1, 1, 0], [0, 0, 1]], bool)
    right = np.array([[1, 0, 0], [1, 1, 1]], bool)
    assert METRICS["f1"](predicted, right) == pytest.approx(2 * 2 / (3 + 4))


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_metrics_of_classes_are_those_of_scikit_learn(num_classes):
    """On random predictions, some of them right."""
    draw = np.random.default_rng(num_classes)
    right = draw.integers(0, num_classes, 300)
    predicted = np.where(draw.random(300) < 0.4, right, draw.integers(0, num_classes, 300))
    expected = sklearn.metrics.matthews_corrcoef(right, predicted)
    assert METRICS["matthews"](predicted, right) == pytest.approx(expected, rel=1e-12)
    if num_classes == 2:
        expected = sklearn.metrics.f1_score(right, predicted)
        assert METRICS["f1"](predicted, right) == pytest.approx(expected, rel=1e-12)
    several = draw.random((2, 80, num_classes)) < 0.4
    expected = sklearn.metrics.f1_score(several[1], several[0], average="micro")
    assert METRICS["f1"](several[0], several[1]) == pytest.approx(expected, rel=1e-12)


def test_an_interval_covers_as_often_as_it_says():
    """Of 200 samples of a coin that is right 70 % of the time, about 95 % of the intervals."""
    draw = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        right = np.ones(150, int)
        said = (draw.random(150) < 0.7).astype(int)
        found = Measure(METRICS["accuracy"], said, right).interval(seed=seed)
        covered += found.low <= 0.7 <= found.high
    assert 180 <= covered <= 199


def test_a_paired_interval_sees_what_two_single_ones_cannot():
    """A model that is right wherever the other is, and on a few examples more."""
    draw = np.random.default_rng(1)
    right = np.ones(300, int)
    other = (draw.random(300) < 0.6).astype(int)
    better = other.copy()
    better[np.flatnonzero(other == 0)[:10]] = 1
    first, second = (Measure(METRICS["accuracy"], said, right) for said in (better, other))
    found = first.minus(second)
    assert found.value == pytest.approx(10 / 300)
    assert found.low > 0
    assert first.interval().low < second.interval().high
    assert first.minus(second) == found

"""Metrics: the field's definitions, compared with values by hand; coverage of intervals."""

import sys

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
import sklearn.metrics

from stillhouse.errors import RecipeError
from stillhouse.tasks.metrics import (
    CORRELATION,
    GLUE,
    METRICS,
    PERCENT,
    UNIT,
    MetricSamples,
    bleu_counts,
    format_score,
    glue_scores,
    mean_percent,
    metric_label,
    rouge_f1,
    score_digits,
    span_counts,
    span_f1,
)
from stillhouse.tasks.tagged import as_iob2, as_scheme

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
    """From the counts of correct and wrong predictions."""
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
def test_constant_predictions_score_zero(name):
    """Zero, not NaN and not a warning."""
    assert METRICS[name](np.zeros(4, int), np.array([0, 1, 0, 1])) == 0.0


LIBRARIES = {
    "sacrebleu": lambda: bleu_counts(["a"], ["a"]),
    "rouge_score": lambda: rouge_f1(["a"], ["a"], ["rouge1"]),
    "seqeval": lambda: span_counts([["O"]], [["O"]], strict=True),
}


@pytest.mark.parametrize("library", list(LIBRARIES))
def test_missing_metric_library_is_reported_with_its_install_command(monkeypatch, library):
    """They come with an extra."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RecipeError, match=r"pip install 'stillhouse\[tasks\]'"):
        LIBRARIES[library]()


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


def test_spans_match_by_ends_and_kind():
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
    """Precision 2 of 3, recall 2 of 4."""
    predicted = np.array([[1, 1, 0], [0, 0, 1]], bool)
    right = np.array([[1, 0, 0], [1, 1, 1]], bool)
    assert METRICS["f1"](predicted, right) == pytest.approx(2 * 2 / (3 + 4))


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_metrics_of_classes_are_those_of_scikit_learn(num_classes):
    """On random predictions, some of them correct."""
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


def test_interval_has_its_nominal_coverage():
    """About 95 % of the intervals of 200 samples with a true accuracy of 70 %."""
    draw = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        right = np.ones(150, int)
        said = (draw.random(150) < 0.7).astype(int)
        found = MetricSamples(METRICS["accuracy"], said, right).interval(seed=seed)
        covered += found.low <= 0.7 <= found.high
    assert 180 <= covered <= 199


def test_paired_interval_is_narrower_than_unpaired():
    """A model that is correct wherever the other is, and on a few more examples."""
    draw = np.random.default_rng(1)
    right = np.ones(300, int)
    other = (draw.random(300) < 0.6).astype(int)
    better = other.copy()
    better[np.flatnonzero(other == 0)[:10]] = 1
    first, second = (MetricSamples(METRICS["accuracy"], said, right) for said in (better, other))
    found = first.minus(second)
    assert found.value == pytest.approx(10 / 300)
    assert found.low > 0
    assert first.interval().low < second.interval().high
    assert first.minus(second) == found


def wilson(successes, size):
    """The two roots of (p - k/n)^2 = z^2 p (1 - p) / n, by numpy."""
    share, z = successes / size, 1.959964
    a, b, c = 1 + z**2 / size, -(2 * share + z**2 / size), share**2
    return sorted(np.roots([a, b, c]).real)


@pytest.mark.parametrize(("successes", "size"), [(80, 80), (0, 5), (70, 80), (1, 1), (37, 500)])
def test_the_interval_of_a_share_is_wilsons(successes, size):
    """80 of 80 correct is 0.954 to 1, not 1 to 1."""
    said = np.arange(size) < successes
    found = MetricSamples(METRICS["accuracy"], said, np.ones(size, bool)).interval()
    assert (found.low, found.high) == pytest.approx(wilson(successes, size), abs=1e-6)
    percent = MetricSamples(mean_percent, said.astype(float), said, PERCENT).interval()
    assert percent.low == pytest.approx(100 * found.low)
    assert percent.high == pytest.approx(100 * found.high)


@pytest.mark.parametrize("name", ["f1", "matthews", "accuracy_and_f1"])
def test_no_interval_has_zero_width(name):
    """Where every example is correct, the interval narrows with the number of examples."""
    bounds = CORRELATION if name == "matthews" else UNIT
    widths = []
    for size in (8, 80):
        right = np.arange(size) % 2
        measure = MetricSamples(METRICS[name], right, right, bounds)
        found = measure.interval()
        assert found.low < found.value == pytest.approx(found.high) == pytest.approx(1)
        widths.append(found.high - found.low)
        gain = measure.minus(measure)
        assert gain.low < gain.value == 0 < gain.high
    assert widths[1] < widths[0]


def test_scores_have_the_same_number_of_decimals():
    """1 is 1.0000 beside 0.8303, and 0 is 0.00 beside 2.16; metrics whose key does not say it are
    named."""
    for values, expected in (
        ((1, 0, 0.797, -0.0536), ["1.0000", "0.0000", "0.7970", "\N{MINUS SIGN}0.0536"]),
        ((0, 0.0, 2.1643), ["0.00", "0.00", "2.16"]),
        ((86.2109, 1234.5), ["86.21", "1,234.50"]),
    ):
        digits = score_digits(values)
        assert [format_score(value, digits) for value in values] == expected
    assert metric_label("strict") == "F1, strict"
    assert metric_label("accuracy", "yes") == metric_label("accuracy") == "accuracy"
    assert metric_label("f1") == "f1"
    assert metric_label("f1", "yes") == "F1 of class yes"
    assert metric_label("accuracy_and_f1", "1") == "accuracy and F1 of class 1"


@pytest.mark.parametrize("scheme", ["IOBES", "BILOU"])
def test_strict_spans_of_other_schemes_are_those_of_the_library(scheme):
    """Random tags against the spans of random sentences."""
    draw = np.random.default_rng(3)
    plain = [list(as_iob2([str(tag) for tag in draw.choice(["O", "B-PER", "I-PER", "I-LOC"], 9)]))
             for _ in range(60)]  # fmt: skip
    right = [as_scheme(tags, scheme) for tags in plain]
    tags = sorted({tag for sentence in right for tag in sentence})
    said = [
        [str(draw.choice(tags)) if draw.random() < 0.2 else tag for tag in sentence]
        for sentence in right
    ]
    counts = span_counts(said, right, strict=True, scheme=scheme)
    kind = getattr(seqeval.scheme, scheme)
    expected = seqeval.metrics.f1_score(right, said, mode="strict", scheme=kind)
    assert span_f1(counts, counts) == pytest.approx(expected)
    assert [list(as_iob2(sentence)) for sentence in right] == plain

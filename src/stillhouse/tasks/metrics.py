"""Metrics of tasks with confidence intervals, on plain arrays.

Every metric takes predictions and labels, in this order, and returns a number. Intervals of a share
of examples are Wilson's (1927); all others are percentile bootstraps over examples (Efron 1979),
from a seed. Where all resamples agree, as they do when every example is right, the interval is as
wide as Wilson's for n of n.

A resample is the number of times each example was drawn. A metric takes all resamples at once, as
weights of the examples, without copying, sorting or counting per resample.

Axes: N examples, D resamples, C classes or labels, G different values.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from stillhouse.extras import require
from stillhouse.units import MINUS

Values = Shaped[np.ndarray, "N ..."]
Times = Float[np.ndarray, "D N"]  # whole numbers, in the type of a fast matrix product
Draws = Float[np.ndarray, " D"]

RESAMPLES = 2_000
CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)  # quantiles of resamples
Z = 1.959964  # of the normal distribution, for 95 %
Bounds = tuple[float, float]
UNIT, PERCENT, CORRELATION = (0.0, 1.0), (0.0, 100.0), (-1.0, 1.0)
DRAWN_AT_ONCE = 10**6  # numbers in memory


@dataclass(frozen=True)
class Metric:
    """A metric: `metric(predicted, right)` is its value, `of_resamples` its values where example n
    counts `times[d, n]` times."""

    of_resamples: Callable[[Values, Values, Times], Draws]

    def __call__(self, predicted: Values, right: Values) -> float:
        return float(self.of_resamples(predicted, right, np.ones((1, len(right))))[0])


@Metric
def accuracy(predicted: Values, right: Values, times: Times) -> Draws:
    """Share of correct predictions."""
    return times @ (predicted == right) / times.sum(1)


@Metric
def f1(predicted: Values, right: Values, times: Times) -> Draws:
    """F1 of the class 1, or over all labels of rows of binary labels; 0 without any positive."""
    size = len(right)
    ours, true = ((side == 1).reshape(size, -1) for side in (predicted, right))
    both, either = times @ (ours & true).sum(1), times @ (ours.sum(1) + true.sum(1))
    return 2 * both / np.maximum(either, 1)


@Metric
def matthews(predicted: Values, right: Values, times: Times) -> Draws:
    """Matthews' correlation of classes from 0 on, from -1 to 1; 0 where one side is constant.

    Source: Gorodkin 2004, equation 8 (two classes or more).
    """
    classes = np.arange(1 + max(int(predicted.max()), int(right.max())))
    ours, true = (times @ (side[:, None] == classes) for side in (predicted, right))
    size, num_right = times.sum(1), times @ (predicted == right)
    spreads = (size**2 - (ours**2).sum(1)) * (size**2 - (true**2).sum(1))
    covariance = size * num_right - (ours * true).sum(1)
    return np.where(spreads > 0, covariance / np.sqrt(np.maximum(spreads, 1)), 0.0)


@Metric
def pearson(predicted: Values, right: Values, times: Times) -> Draws:
    """Linear correlation; 0 where one side is constant."""
    return _correlation(_scaled(predicted), _scaled(right), times)


@Metric
def spearman(predicted: Values, right: Values, times: Times) -> Draws:
    """Correlation of ranks; 0 where one side is constant."""
    return _correlation(_ranks(predicted, times), _ranks(right, times), times)


@Metric
def auroc(predicted: Values, right: Values, times: Times) -> Draws:
    """Probability that an example of the class 1 has a higher score than one of the class 0, ties
    counted as half (Hanley and McNeil 1982); 1/2 where one class is missing."""
    different, group = np.unique(predicted, return_inverse=True)
    sides = [np.zeros((len(times), len(different))) for _ in range(2)]  # (D, G) each
    for label, side in enumerate(sides):
        np.add.at(side.T, group[right == label], times[:, right == label].T)
    below = sides[0].cumsum(1) - sides[0] / 2
    pairs = sides[0].sum(1) * sides[1].sum(1)
    wins = (below * sides[1]).sum(1)
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5)


def _correlation(
    one: Float[np.ndarray, "*D N"], other: Float[np.ndarray, "*D N"], times: Times
) -> Draws:
    """Pearson's correlation with weights: covariance over both standard deviations."""
    size, was_drawn = times.sum(1, keepdims=True), times > 0
    varies = np.ones(len(times), bool)
    centered = []
    for side in (one, other):
        lowest = np.where(was_drawn, side, np.inf).min(1)
        highest = np.where(was_drawn, side, -np.inf).max(1)
        varies &= lowest != highest
        centered.append(side - (times * side).sum(1, keepdims=True) / size)
    one, other = centered
    covariance = (times * one * other).sum(1)
    spread = np.sqrt((times * one**2).sum(1)) * np.sqrt((times * other**2).sum(1))
    return np.where(varies, np.clip(covariance / np.where(varies, spread, 1), -1, 1), 0.0)


def _scaled(values: Shaped[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The values scaled to -1 to 1, so that no square overflows."""
    values = np.asarray(values, np.float64)
    return values / (np.abs(values).max() or 1.0)


def _ranks(values: Shaped[np.ndarray, " N"], times: Times) -> Float[np.ndarray, "D N"]:
    """The rank of each example in each resample, the mean rank for equal ones; NaN for NaN."""
    different, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    firsts = np.searchsorted(group[order], np.arange(len(different)))
    drawn = np.add.reduceat(times[:, order], firsts, axis=1)  # (D, G)
    ranks = drawn.cumsum(1) - (drawn - 1) / 2
    ranks[:, np.isnan(different)] = np.nan
    return ranks[:, group]


def _library(name: str) -> Any:
    require("tasks", name.partition(".")[0])
    return importlib.import_module(name)


def mean_of(*metrics: Metric) -> Metric:
    """The mean of several metrics, as GLUE takes it."""

    def of_resamples(predicted: Values, right: Values, times: Times) -> Draws:
        return np.mean([each.of_resamples(predicted, right, times) for each in metrics], axis=0)

    return Metric(of_resamples)


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "accuracy_and_f1": mean_of(accuracy, f1),
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "pearson_and_spearman": mean_of(pearson, spearman),
}

# Metrics that say nothing where all labels are the same.
UNDEFINED_ON_CONSTANT_LABELS = {
    *("matthews", "pearson", "spearman", "pearson_and_spearman"),
    *("strict", "default"),
}

# Wang et al. 2019 (arXiv:1804.07461); MNLI is the mean of matched and mismatched.
GLUE: Mapping[str, str] = {
    "cola": "matthews",
    "mnli": "accuracy",
    "mrpc": "accuracy_and_f1",
    "qnli": "accuracy",
    "qqp": "accuracy_and_f1",
    "rte": "accuracy",
    "sst2": "accuracy",
    "stsb": "pearson_and_spearman",
    "wnli": "accuracy",
}


LABELS: Mapping[str, str] = {
    "accuracy_norm": "accuracy per character",
    "accuracy_and_f1": "accuracy and F1",
    "default": "F1, conlleval",
    "exact_match": "exact match",
    "flexible_match": "flexible match",
    "gender_polarity": "gender polarity",
    "icat": "ICAT",
    "language_modeling_score": "language modeling score",
    "last_token": "last token",
    "last_word": "last word",
    "log_likelihood_difference": "difference of log-likelihoods, nats",
    "male_preference": "preference of male pronouns",
    "matthews": "Matthews correlation",
    "occupation_correlation": "correlation with shares of women",
    "pearson": "Pearson correlation",
    "pearson_and_spearman": "mean of both correlations",
    "pronoun_gap": "pronoun gap",
    "spearman": "Spearman correlation",
    "stereotype_score": "stereotype score",
    "strict": "F1, strict",
    "strict_match": "strict match",
}
CLASS_METRICS: Mapping[str, str] = {"f1": "F1", "accuracy_and_f1": "accuracy and F1"}


def metric_label(name: str, positive: str | None = None) -> str:
    """The label of a metric in tables and cards, with its positive class where it has one."""
    if positive is not None and name in CLASS_METRICS:
        return f"{CLASS_METRICS[name]} of class {positive}"
    metric, _, group = name.partition("/")
    label = LABELS.get(metric, metric)
    return f"{label}, {group}" if group else label


def score_digits(values: Iterable[int | float]) -> int:
    """Decimals for all values of a metric: 4 up to 1 (shares, correlations), else 2 (percentages,
    BLEU)."""
    return 4 if all(abs(value) <= 1 for value in values) else 2


def format_score(value: int | float, digits: int) -> str:
    """0.7970, 1.0000, 86.21; a real minus sign."""
    return f"{value:,.{digits}f}".replace("-", MINUS)


def glue_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    """The macro scores over GLUE's tasks, with WNLI and without; null where a task is missing."""
    without = [scores[task] for task in GLUE if task != "wnli" and task in scores]
    complete = len(without) == len(GLUE) - 1
    return {
        "macro": fmean([*without, scores["wnli"]]) if complete and "wnli" in scores else None,
        "macro_without_wnli": fmean(without) if complete else None,
    }


def span_counts(
    predicted: Sequence[Sequence[str]],
    right: Sequence[Sequence[str]],
    *,
    strict: bool,
    scheme: str = "IOB2",
) -> Int[np.ndarray, "N 3"]:
    """For each sentence the number of correct, predicted and reference entities.

    With `strict` only valid spans of the scheme count; else one that begins with `I-` counts too,
    as in conlleval.

    Args:
        scheme: IOB2, IOBES or BILOU.
        predicted: Tags of each sentence.
        right: The same number of sentences and tags.
    """
    counts = []
    for pair in zip(predicted, right, strict=True):
        ours, theirs = (_entities(list(tags), scheme if strict else None) for tags in pair)
        counts.append((len(ours & theirs), len(ours), len(theirs)))
    return np.array(counts, np.int64)


@Metric
def span_f1(counts: Values, _: Values, times: Times) -> Draws:
    """Micro F1 over entities, from `span_counts`."""
    shared, ours, true = (times @ counts).T
    return 2 * shared / np.maximum(ours + true, 1)


@Metric
def mean(values: Values, _: Values, times: Times) -> Draws:
    """Mean of one number per example."""
    return times @ values / times.sum(1)


@Metric
def mean_percent(values: Values, _: Values, times: Times) -> Draws:
    """Mean in percent of one number from 0 to 1 per example."""
    return 100 * (times @ values) / times.sum(1)


def bleu_counts(predicted: Sequence[str], right: Sequence[str]) -> Int[np.ndarray, "N 10"]:
    """For each text the correct and total n-grams (1 to 4), its length and its reference's, as
    counted by sacreBLEU with one reference (mixed case, 13a tokens)."""
    counter = _library("sacrebleu.metrics").BLEU()
    counts = []
    for text, reference in zip(predicted, right, strict=True):
        found = counter.corpus_score([text], [[reference]])
        counts.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(counts, np.int64)


@Metric
def bleu(counts: Values, _: Values, times: Times) -> Draws:
    """BLEU of the whole set, from `bleu_counts`, smoothed as sacreBLEU does by default (exp)."""
    score = _library("sacrebleu.metrics").BLEU.compute_bleu
    sums = (times @ counts).astype(np.int64).tolist()
    found = [score(each[:4], each[4:8], *each[8:], smooth_method="exp") for each in sums]
    return np.array([each.score for each in found])


def rouge_f1(
    predicted: Sequence[str], right: Sequence[str], names: Sequence[str]
) -> Float[np.ndarray, "N K"]:
    """ROUGE F1 in percent of each text by each name (rouge1, rouge2, rougeLsum), with stemming;
    sentences are separated by line ends."""
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(list(names), use_stemmer=True)
    rows = [scorer.score(true, text) for text, true in zip(predicted, right, strict=True)]
    return np.array([[100 * row[name].fmeasure for name in names] for row in rows])


def _entities(tags: list[str], scheme: str | None) -> set[Any]:
    if scheme is None:
        return set(_library("seqeval.metrics.sequence_labeling").get_entities(tags))
    library = _library("seqeval.scheme")
    found = library.Entities([tags], getattr(library, scheme)).entities[0]
    return {(entity.tag, entity.start, entity.end) for entity in found}


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Its numbers by name; None for what is not finite, as of a model that diverged."""
        return {key: each if math.isfinite(each) else None for key, each in asdict(self).items()}


@dataclass(frozen=True)
class MetricSamples:
    """A metric with its predictions and labels, example by example.

    `bounds` are the lowest and highest possible value, or None.
    """

    metric: Metric
    predicted: Values
    right: Values
    bounds: Bounds | None = UNIT

    @property
    def value(self) -> float:
        return self.metric(self.predicted, self.right)

    def interval(self, *, seed: int = 0) -> Interval:
        """The value with its interval over examples."""
        if self._is_share and self.bounds is not None:
            return _wilson(self.value, len(self.right), self.bounds)
        draws = [self._of(times) for times in _resamples(len(self.right), seed)]
        return self._interval(self.value, draws, self.bounds)

    def minus(self, other: "MetricSamples", *, seed: int = 0) -> Interval:
        """The difference from another model's value on the same examples, with the paired interval:
        each resample draws the same examples for both."""
        draws = [self._of(times) - other._of(times) for times in _resamples(len(self.right), seed)]
        bounds = None if self.bounds is None else (-self._span, self._span)
        return self._interval(self.value - other.value, draws, bounds)

    def draws(self, seed: int) -> Draws:
        """The values of resamples; those of metrics of as many examples are paired."""
        return np.concatenate([self._of(times) for times in _resamples(len(self.right), seed)])

    @property
    def _is_share(self) -> bool:
        """Whether the value is a share of the examples: a mean of zeros and ones."""
        if self.metric in (mean, mean_percent):
            return bool(np.isin(self.predicted, (0.0, 1.0)).all())
        return self.metric is accuracy

    @property
    def _span(self) -> float:
        low, high = self.bounds or UNIT
        return high - low

    def _interval(self, value: float, draws: Sequence[Draws], bounds: Bounds | None) -> Interval:
        """The percentiles of the resamples; where all agree, as wide as Wilson's interval for n of
        n examples."""
        low, high = map(float, np.quantile(np.concatenate(draws), TAILS))
        if bounds is not None and high - low <= 1e-12 * self._span:
            margin = self._span * Z**2 / (len(self.right) + Z**2)
            low, high = max(bounds[0], value - margin), min(bounds[1], value + margin)
        return Interval(value, low, high)

    def _of(self, times: Times) -> Draws:
        return self.metric.of_resamples(self.predicted, self.right, times)


def correlation_samples(
    predicted: Sequence[float], right: Sequence[float]
) -> dict[str, MetricSamples]:
    """The correlations of predicted numbers with labels."""
    names = ("pearson", "spearman", "pearson_and_spearman")
    sides = np.array(predicted), np.array(right)
    return {name: MetricSamples(METRICS[name], *sides, CORRELATION) for name in names}


def _wilson(value: float, size: int, bounds: Bounds) -> Interval:
    """Wilson's score interval for a share of `size` examples.

    With p the share and n their number, at a confidence of 95 % (z = 1.96):

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Source: Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1.
    """
    low, high = bounds
    share = (value - low) / (high - low)
    center = share + Z**2 / (2 * size)
    margin = Z * math.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    ends = ((center + sign * margin) / (1 + Z**2 / size) for sign in (-1, 1))
    first, last = (low + (high - low) * min(1.0, max(0.0, end)) for end in ends)
    return Interval(value, min(first, value), max(last, value))


def _resamples(size: int, seed: int) -> Iterator[Times]:
    """How many times each example is drawn in RESAMPLES draws of `size` with replacement, in
    chunks."""
    generator = np.random.default_rng(seed)
    at_once = max(1, min(RESAMPLES, DRAWN_AT_ONCE // size))
    for first in range(0, RESAMPLES, at_once):
        rows = generator.integers(0, size, (min(at_once, RESAMPLES - first), size))
        places = rows + size * np.arange(len(rows))[:, None]
        counts = np.bincount(places.ravel(), minlength=places.size)
        yield counts.reshape(rows.shape).astype(np.float64)

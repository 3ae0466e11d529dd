"""Metrics of tasks, and how sure they are, on plain arrays.

Every metric takes what was predicted and what is right, in this order, and gives a number.
Intervals of a share of examples are Wilson's (1927); all others are percentile bootstraps over
examples (Efron 1979), from a seed. Where all resamples agree, as they do when every example is
right, a bootstrap has no width, and the interval is as wide as Wilson's for n of n.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from stillhouse.errors import RecipeError

Values = Shaped[np.ndarray, "N ..."]
Metric = Callable[[Values, Values], float]

RESAMPLES = 2_000
CONFIDENCE = 0.95
Z = 1.959964  # of the normal distribution, for 95 %
Bounds = tuple[float, float]
UNIT, PERCENT, CORRELATION = (0.0, 1.0), (0.0, 100.0), (-1.0, 1.0)
DRAWN_AT_ONCE = 10**6  # numbers in memory


def accuracy(predicted: Values, right: Values) -> float:
    """Share of examples that are right."""
    return float(np.mean(predicted == right))


def f1(predicted: Values, right: Values) -> float:
    """F1 of the class 1 (or, for rows of labels that each hold or not, over all of them): twice
    what is in both over what is in either, 0 where that is nothing."""
    said, true = predicted == 1, right == 1
    either = int(said.sum() + true.sum())
    return 2 * int((said & true).sum()) / either if either else 0.0


def matthews(predicted: Values, right: Values) -> float:
    """Matthews' correlation of classes from 0 on, from -1 to 1; 0 where one side is constant.

    Source: Gorodkin 2004, equation 8 (two classes or more).
    """
    num_classes = 1 + max(int(predicted.max()), int(right.max()))
    said, true = (
        np.bincount(side, minlength=num_classes).astype(np.float64) for side in (predicted, right)
    )
    size = len(right)
    spreads = (size**2 - said @ said) * (size**2 - true @ true)
    if spreads == 0:
        return 0.0
    return float((size * np.sum(predicted == right) - said @ true) / np.sqrt(spreads))


def pearson(predicted: Values, right: Values) -> float:
    """Linear correlation; 0 where one side is constant."""
    return _correlation("pearsonr", predicted, right)


def spearman(predicted: Values, right: Values) -> float:
    """Correlation of ranks; 0 where one side is constant."""
    return _correlation("spearmanr", predicted, right)


def _correlation(name: str, predicted: Values, right: Values) -> float:
    if np.ptp(predicted) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(getattr(_library("scipy.stats"), name)(predicted, right).statistic)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(
            f"The metrics of tasks need {name.partition('.')[0]}. Install it with "
            "`pip install 'stillhouse[tasks]'`."
        ) from error


def mean_of(*metrics: Metric) -> Metric:
    """The mean of several metrics, as GLUE takes it."""
    return lambda predicted, right: fmean(metric(predicted, right) for metric in metrics)


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "accuracy_and_f1": mean_of(accuracy, f1),
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "pearson_and_spearman": mean_of(pearson, spearman),
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


LABELS: Mapping[str, str] = {"strict": "F1, strict", "default": "F1, conlleval"}


def metric_label(name: str) -> str:
    """What a metric is called in tables and cards, where its key alone does not say it."""
    return LABELS.get(name, name)


def format_score(value: int | float) -> str:
    """Four decimals for a score of at most 1, two for one in percent: 0.7970, 1.0000, 86.21."""
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:,.2f}"


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
    """For each sentence the entities that were predicted and right, were predicted, and are right.

    `strict` takes spans of the scheme alone; else one that begins with `I-` counts too, as
    conlleval has it.

    Args:
        scheme: IOB2, IOBES or BILOU.
        predicted: Tags of each sentence.
        right: The same number of sentences and tags.
    """
    counts = []
    for said, true in zip(predicted, right, strict=True):
        ours, theirs = (_entities(list(tags), scheme if strict else None) for tags in (said, true))
        counts.append((len(ours & theirs), len(ours), len(theirs)))
    return np.array(counts, np.int64)


def span_f1(counts: Values, _: Values) -> float:
    """Micro F1 over entities, from `span_counts`."""
    shared, said, true = counts.sum(0).tolist()
    return 2 * shared / (said + true) if shared else 0.0


def mean(values: Values, _: Values) -> float:
    """Of one number for each example."""
    return float(values.mean())


def mean_percent(values: Values, _: Values) -> float:
    """Of one number from 0 to 1 for each example."""
    return float(100 * values.mean())


def bleu_counts(predicted: Sequence[str], right: Sequence[str]) -> Int[np.ndarray, "N 10"]:
    """For each text the n-grams (1 to 4) that are right, those that are there, its length and that
    of its reference, as sacreBLEU counts them with one reference (mixed case, tokens of 13a)."""
    counter = _library("sacrebleu.metrics").BLEU()
    counts = []
    for said, true in zip(predicted, right, strict=True):
        found = counter.corpus_score([said], [[true]])
        counts.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(counts, np.int64)


def bleu(counts: Values, _: Values) -> float:
    """BLEU of the whole set, from `bleu_counts`, smoothed as sacreBLEU does by default (exp)."""
    totals = counts.sum(0).tolist()
    score = _library("sacrebleu.metrics").BLEU.compute_bleu(
        totals[:4], totals[4:8], *totals[8:], smooth_method="exp"
    )
    return score.score


def rouge_f1(
    predicted: Sequence[str], right: Sequence[str], names: Sequence[str]
) -> Float[np.ndarray, "N K"]:
    """ROUGE F1 in percent of each text under each name (rouge1, rouge2, rougeLsum), with stemming;
    sentences are apart by line ends."""
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(list(names), use_stemmer=True)
    rows = [scorer.score(true, said) for said, true in zip(predicted, right, strict=True)]
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


@dataclass(frozen=True)
class Measure:
    """A metric, what was predicted and what is right, example by example: what a value follows
    from, and how sure it is. `bounds` are the lowest and the highest value; None where there are
    none."""

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
        draws = [self._of(rows) for rows in _resamples(len(self.right), seed)]
        return self._widened(_interval(self.value, draws), self.bounds)

    def minus(self, other: "Measure", *, seed: int = 0) -> Interval:
        """How much higher than another model's value for the same examples, with the paired
        interval: each resample asks both about the same ones."""
        draws = [self._of(rows) - other._of(rows) for rows in _resamples(len(self.right), seed)]
        bounds = None if self.bounds is None else (-self._span, self._span)
        return self._widened(_interval(self.value - other.value, draws), bounds)

    @property
    def _is_share(self) -> bool:
        """Whether the value is a share of the examples: a mean of what is 0 or 1."""
        if self.metric in (mean, mean_percent):
            return bool(np.isin(self.predicted, (0.0, 1.0)).all())
        return self.metric is accuracy

    @property
    def _span(self) -> float:
        low, high = self.bounds or UNIT
        return high - low

    def _widened(self, found: Interval, bounds: Bounds | None) -> Interval:
        """An interval that has some width, as n examples that agree leave some doubt."""
        if bounds is None or found.high - found.low > 1e-12 * self._span:
            return found
        margin = self._span * Z**2 / (len(self.right) + Z**2)
        low, high = max(bounds[0], found.value - margin), min(bounds[1], found.value + margin)
        return Interval(found.value, low, high)

    def _of(self, rows: Int[np.ndarray, " N"]) -> float:
        return self.metric(self.predicted[rows], self.right[rows])


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


def _resamples(size: int, seed: int) -> Iterator[Int[np.ndarray, " N"]]:
    generator = np.random.default_rng(seed)
    at_once = max(1, min(RESAMPLES, DRAWN_AT_ONCE // size))
    for first in range(0, RESAMPLES, at_once):
        yield from generator.integers(0, size, (min(at_once, RESAMPLES - first), size))


def _interval(value: float, draws: Sequence[float]) -> Interval:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))

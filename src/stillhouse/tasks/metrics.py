"""Metrics of tasks, and how sure they are: by libraries of the field, on plain arrays.

Every metric takes what was predicted and what is right, in this order, and gives a number of which
more is better. Intervals are percentile bootstraps over examples (Efron 1979), from a seed.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped

from stillhouse.errors import RecipeError

Values = Shaped[np.ndarray, " N"]
Metric = Callable[[Values, Values], float]

RESAMPLES = 2_000
CONFIDENCE = 0.95


def accuracy(predicted: Values, right: Values) -> float:
    """Share of examples that are right."""
    return float(np.mean(predicted == right))


def f1(predicted: Values, right: Values) -> float:
    """F1 of the class 1; 0 where it is neither predicted nor there."""
    return float(_library("sklearn.metrics").f1_score(right, predicted, zero_division=0))


def matthews(predicted: Values, right: Values) -> float:
    """Matthews' correlation, from -1 to 1; 0 where one side is constant."""
    return float(_library("sklearn.metrics").matthews_corrcoef(right, predicted))


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


def glue_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    """The macro scores over GLUE's tasks, with WNLI and without; null where a task is missing."""
    without = [scores[task] for task in GLUE if task != "wnli" and task in scores]
    complete = len(without) == len(GLUE) - 1
    return {
        "macro": fmean([*without, scores["wnli"]]) if complete and "wnli" in scores else None,
        "macro_without_wnli": fmean(without) if complete else None,
    }


def span_f1(predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Micro F1 over entities: `strict` takes spans of the scheme IOB2 alone; `default` also counts
    one that begins with `I-`, as conlleval does.

    Args:
        predicted: Tags of each sentence.
        right: The same number of sentences and tags.
    """
    f1_score, scheme = _library("seqeval.metrics").f1_score, _library("seqeval.scheme").IOB2
    sentences = [list(tags) for tags in right], [list(tags) for tags in predicted]
    return {
        "strict": float(f1_score(*sentences, mode="strict", scheme=scheme, zero_division=0)),
        "default": float(f1_score(*sentences, zero_division=0)),
    }


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def interval(metric: Metric, predicted: Values, right: Values, *, seed: int = 0) -> Interval:
    """A metric with its 95 % interval over examples."""
    draws = [metric(predicted[rows], right[rows]) for rows in _resamples(len(right), seed)]
    return _interval(metric(predicted, right), draws)


def paired_interval(
    metric: Metric, predicted: Values, other: Values, right: Values, *, seed: int = 0
) -> Interval:
    """The difference of a metric between two models, the first minus the other, each resample
    asking both about the same examples."""
    draws = [
        metric(predicted[rows], right[rows]) - metric(other[rows], right[rows])
        for rows in _resamples(len(right), seed)
    ]
    return _interval(metric(predicted, right) - metric(other, right), draws)


def _resamples(size: int, seed: int) -> Num[np.ndarray, "R N"]:
    return np.random.default_rng(seed).integers(0, size, (RESAMPLES, size))


def _interval(value: float, draws: Sequence[float]) -> Interval:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))

"""Questions that have no answer: the scores of SQuAD 2.0, and the threshold of a model.

A model says that a question has no answer where the score of that (both logits of the first token,
the lowest of all windows) exceeds the score of its best answer by more than a threshold.

Source: Rajpurkar et al. 2018 (arXiv:1806.03822) and the evaluation published with it; Devlin et al.
2019, section 4.3, for the threshold.

Axes: N questions, D resamples of them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from stillhouse.tasks.metrics import PERCENT, Draws, Metric, MetricSamples, Times, mean_percent
from stillhouse.tasks.squad import AnswerScore, normalized, word_f1

HAS_ANSWER, SCORE, DIFFERENCE, SAYS_SOMETHING = range(4)  # columns: what a threshold follows from


class Answered(NamedTuple):
    """The best answers to questions, and how much higher each one's null score is than the best
    answer's score."""

    texts: Sequence[str]
    differences: Float[np.ndarray, " N"]

    def at(self, threshold: float) -> list[str]:
        """The final answers: empty where the difference exceeds the threshold."""
        pairs = zip(self.texts, self.differences, strict=True)
        return ["" if difference > threshold else text for text, difference in pairs]


def score_one(prediction: str, references: Sequence[str]) -> AnswerScore:
    """What an answer is worth; without references only an empty one is right.

    Unlike in version 1.1, an answer and a reference of which nothing is left are equal in F1 too.
    """
    right = [text for each in references if (text := normalized(each))] or [""]
    said = normalized(prediction)
    scores = [
        word_f1(said.split(), text.split()) if said and text else float(said == text)
        for text in right
    ]
    return AnswerScore(float(said in right), max(scores))


def measures_with_no_answers(
    answered: Answered, references: Sequence[Sequence[str]], threshold: float
) -> dict[str, MetricSamples]:
    """The official metrics, in percent: exact match and F1 at the threshold, of all questions and
    of those with and without an answer; and what the best threshold would give, with it."""
    final = _scores(answered.at(threshold), references)
    found = {name: _mean(values) for name, values in final.items()}
    has_answer = np.array([bool(each) for each in references])
    for name, rows in (("HasAns", has_answer), ("NoAns", ~has_answer)):
        for metric in ("exact", "f1"):
            if rows.any():
                found[f"{name}_{metric}"] = _mean(final[_key(metric)][rows])
    for metric in ("exact", "f1"):
        columns = _columns(answered, references, _key(metric))
        found[f"best_{metric}"] = MetricSamples(_best_score, columns, columns, bounds=PERCENT)
        found[f"best_{metric}_thresh"] = MetricSamples(
            best_threshold, columns, columns, bounds=None
        )
    return found


def chosen_threshold(answered: Answered, references: Sequence[Sequence[str]], metric: str) -> float:
    """The threshold at which the metric, `exact_match` or `f1`, is best on these questions."""
    columns = _columns(answered, references, metric)
    return best_threshold(columns, columns)


@Metric
def best_threshold(
    columns: Float[np.ndarray, "N 4"], _: Float[np.ndarray, "N 4"], times: Times
) -> Draws:
    """The threshold with the best score: the largest difference of an answer that is given."""
    order, running, nothing = _running_scores(columns, times)
    differences = columns[order, DIFFERENCE]
    # Where no answer is given at all:
    first = (times[:, order] > 0).argmax(1)
    below = np.minimum(0.0, np.nextafter(differences[first], -np.inf))
    return np.where(running.max(1) <= nothing, below, differences[running.argmax(1)])


@Metric
def _best_score(
    columns: Float[np.ndarray, "N 4"], _: Float[np.ndarray, "N 4"], times: Times
) -> Draws:
    _, running, nothing = _running_scores(columns, times)
    return 100 * np.maximum(running.max(1), nothing) / times.sum(1)


def _running_scores(
    columns: Float[np.ndarray, "N 4"], times: Times
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, "D N"], Draws]:
    """Questions by their difference, the sum of scores where those up to each one are answered and
    the others are not, and that sum where none is."""
    has_answer = columns[:, HAS_ANSWER] > 0
    order = np.argsort(columns[:, DIFFERENCE], kind="stable")
    gains = np.where(has_answer, columns[:, SCORE], -columns[:, SAYS_SOMETHING])
    nothing = times @ ~has_answer
    return order, nothing[:, None] + np.cumsum(times[:, order] * gains[order], axis=1), nothing


def _columns(
    answered: Answered, references: Sequence[Sequence[str]], metric: str
) -> Float[np.ndarray, "N 4"]:
    has_answer = np.array([bool(each) for each in references])
    says_something = np.array([bool(text) for text in answered.texts])
    scores = _scores(answered.texts, references)[metric]
    return np.stack([has_answer, scores, answered.differences, says_something], axis=1)


def _scores(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> Mapping[str, Float[np.ndarray, " N"]]:
    found = [score_one(text, right) for text, right in zip(texts, references, strict=True)]
    return {
        "exact_match": np.array([each.exact_match for each in found]),
        "f1": np.array([each.f1 for each in found]),
    }


def _key(metric: str) -> str:
    return "exact_match" if metric == "exact" else metric


def _mean(values: Float[np.ndarray, " N"]) -> MetricSamples:
    return MetricSamples(mean_percent, values, values, bounds=PERCENT)

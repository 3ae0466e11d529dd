"""SQuAD: the reader of its files, its official scores, and the null threshold of a model.

Questions are read from files of articles, or from tables as datasets have them.

In version 1.1 answers are compared in lower case, without punctuation and articles, with the
reference that fits best (Rajpurkar et al. 2016, arXiv:1606.05250).

In version 2.0 questions may have no answer (Rajpurkar et al. 2018, arXiv:1806.03822). A model
predicts none where the null score (the sum of the first token's logits, the lowest of all windows)
exceeds the score of its best answer by more than a threshold (Devlin et al. 2019, section 4.3).

Axes: N questions, D resamples of them.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from stillhouse.data.formats import format_of
from stillhouse.data.rows import read_json, read_rows
from stillhouse.data.text import check_characters
from stillhouse.errors import DataError
from stillhouse.tasks.metrics import PERCENT, Draws, Metric, MetricSamples, Times, mean_percent

JSON_NAMES = {
    list: "a list", dict: "an object", str: "a string", int: "a whole number", float: "a number",
    bool: "true or false",
}  # fmt: skip
FORMATS = (
    "Give a file in SQuAD's format: "
    '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", '
    '"answers": [{"text", "answer_start"}]}]}]}]}; or a table of id, question, context, and '
    'answers as {"text": [...], "answer_start": [...]}.'
)


@dataclass(frozen=True)
class Answer:
    """A span of the context, from the character `start` on."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question, its context and its reference answers.

    There are no answers where the context has none (`is_impossible`), or where they are unknown.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    is_impossible: bool = False

    @property
    def is_labeled(self) -> bool:
        return self.is_impossible or bool(self.answers)

    @property
    def inputs(self) -> dict[str, str]:
        """What a model is given, with the id."""
        return {"id": self.id, "question": self.question, "context": self.context}


def read_squad(path: Path) -> list[Question]:
    """The questions of a file in SQuAD's format, in order; `.gz` is decompressed.

    A table, as datasets have them, holds `id`, `question`, `context`, and `answers` with the lists
    `text` and `answer_start`. Where these are empty a question has no answer (SQuAD 2.0).

    Raises:
        DataError: no such file, not in that format, `is_impossible` beside answers or false without
            any, an answer that is not at its position, or a duplicate id.
    """
    questions: dict[str, Question] = {}
    articles = read_articles(path)
    for question in _rows(path) if articles is None else _questions(articles, path):
        if question.id in questions:
            raise DataError(
                f"{path}: the question id {question.id!r} comes twice. Ids must differ."
            )
        questions[question.id] = question
    if not questions:
        raise DataError(f"{path} holds no question. {FORMATS}")
    return list(questions.values())


def read_articles(path: Path) -> Any:
    """The content of a JSON file in SQuAD's own format; None for a table of questions.

    Raises:
        DataError: no such file, or not JSON.
    """
    if format_of(path).name != "JSON":
        return None
    try:
        content = read_json(path)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data":
            return None  # an object a line
        raise
    is_row = isinstance(content, dict) and "question" in content
    return None if is_row or (isinstance(content, list) and content) else content


def _questions(content: Any, path: Path) -> Iterator[Question]:
    for article in _list(content, "data", str(path)):
        title = article.get("title", "?") if isinstance(article, dict) else "?"
        for number, paragraph in enumerate(_list(article, "paragraphs", f"{path}, {title}"), 1):
            where = f"{path}, {title}, paragraph {number}"
            context = _field(paragraph, "context", str, where)
            for entry in _list(paragraph, "qas", where):
                yield _question(entry, context, where)


def _rows(path: Path) -> Iterator[Question]:
    for row in read_rows(path, "context"):
        answers = _field(row.fields, "answers", dict, row.where)
        texts, starts = (_list(answers, key, row.where) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise DataError(
                f"{row.where}: `text` has {len(texts)} answers, `answer_start` {len(starts)}; give "
                "one for each."
            )
        pairs = [
            {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
        ]
        context = _field(row.fields, "context", str, row.where)
        yield _question({**row.fields, "answers": pairs}, context, row.where)


def _question(entry: Any, context: str, where: str) -> Question:
    name = _field(entry, "id", str, where)
    where = f"{where}, question {name}"
    answers = tuple(
        Answer(_field(answer, "text", str, where), _field(answer, "answer_start", int, where))
        for answer in _list(entry, "answers", where)
    )
    stated = entry.get("is_impossible")
    if stated is not None and _field(entry, "is_impossible", bool, where) == bool(answers):
        raise DataError(
            f"{where}: is_impossible is {str(stated).lower()}, but it has {len(answers)} answers. "
            "Correct one of them, or leave the question out."
        )
    for answer in answers:
        if not answer.text.strip():
            raise DataError(
                f"{where}: an answer is {answer.text!r}, which is blank. Leave the answer out; a "
                "question without answers is unanswerable (SQuAD 2.0)."
            )
        if answer.start < 0 or not context.startswith(answer.text, answer.start):
            elsewhere = context.find(answer.text)
            hint = f"it is at {elsewhere}" if elsewhere >= 0 else "it does not occur there"
            raise DataError(
                f"{where}: the answer {answer.text!r} is not at character {answer.start} "
                f"of the context; {hint}. Correct answer_start, or leave the question out."
            )
    text = _field(entry, "question", str, where)
    return Question(name, text, context, answers, is_impossible=not answers)


def _list(holder: Any, key: str, where: str) -> list[Any]:
    return _field(holder, key, list, where)


def _field(holder: Any, key: str, kind: type, where: str) -> Any:
    value = holder.get(key) if isinstance(holder, dict) else None
    if isinstance(value, str):
        check_characters(value, f"{where}: {key!r}")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "is missing" if value is None else f"is {JSON_NAMES[type(value)]}"
        raise DataError(f"{where}: {key!r} {found}; it must be {JSON_NAMES[kind]}. {FORMATS}")
    return value


WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
HAS_ANSWER, SCORE, DIFFERENCE, IS_ANSWERED = range(4)  # the columns that a threshold depends on


class AnswerScore(NamedTuple):
    """The scores of one answer, each from 0 to 1."""

    exact_match: float
    f1: float


class BestAnswers(NamedTuple):
    """The best answer to each question, and its null score minus the best answer's score."""

    texts: Sequence[str]
    differences: Float[np.ndarray, " N"]

    def at(self, threshold: float) -> list[str]:
        """The final answers: empty where the difference exceeds the threshold."""
        pairs = zip(self.texts, self.differences, strict=True)
        return ["" if difference > threshold else text for text, difference in pairs]


def samples_of_answers(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, MetricSamples]:
    """The official metrics of version 1.1, in percent: the means of `exact_match` and `f1` over the
    questions of the references.

    Questions without a prediction count as wrong; predictions for other questions are ignored.

    Args:
        predictions: The text of the answer by the question's id.
        references: The reference texts, at least one, by the question's id.
    """
    found = _by_metric(score_each(predictions, references).values())
    return {name: _mean(values) for name, values in found.items()}


def score_each(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, AnswerScore]:
    """The scores of each question in version 1.1, by its id.

    Raises:
        DataError: no questions, or one without references.
    """
    if not references:
        raise DataError("There are no reference answers, so there is nothing to score.")
    without = next((name for name, texts in references.items() if not texts), None)
    if without is not None:
        raise DataError(f"The question {without!r} has no reference answer.")
    return {
        name: _score(predictions[name], [normalized(text) for text in texts], both_empty=0.0)
        if name in predictions
        else AnswerScore(0.0, 0.0)
        for name, texts in references.items()
    }


def _score(prediction: str, references: Sequence[str], *, both_empty: float) -> AnswerScore:
    """The scores by the best of normalized references; F1 of two empty texts is `both_empty`."""
    answer = normalized(prediction)
    f1s = (
        word_f1(answer.split(), text.split()) if answer or text else both_empty
        for text in references
    )
    return AnswerScore(float(answer in references), max(f1s))


def normalized(text: str) -> str:
    """Lower case, without punctuation, then without articles, words separated by one space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def word_f1(answer: Sequence[str], right: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the multisets of words."""
    shared = (Counter(answer) & Counter(right)).total()
    return 2 * shared / (len(answer) + len(right)) if shared else 0.0


def score_one(prediction: str, references: Sequence[str]) -> AnswerScore:
    """The scores of an answer in version 2.0: without references only an empty one is right.

    Unlike in version 1.1, F1 is 1 for two texts that are empty after normalization.
    """
    right = [text for each in references if (text := normalized(each))] or [""]
    return _score(prediction, right, both_empty=1.0)


def samples_with_no_answers(
    answered: BestAnswers, references: Sequence[Sequence[str]], threshold: float
) -> dict[str, MetricSamples]:
    """The official metrics of version 2.0, in percent: exact match and F1 at the threshold, of all
    questions and of those with and without an answer; and those of the best threshold."""
    final = _by_metric(starmap(score_one, zip(answered.at(threshold), references, strict=True)))
    found = {name: _mean(values) for name, values in final.items()}
    has_answer = np.array([bool(each) for each in references])
    for short, metric in (("exact", "exact_match"), ("f1", "f1")):
        for name, rows in (("HasAns", has_answer), ("NoAns", ~has_answer)):
            if rows.any():
                found[f"{name}_{short}"] = _mean(final[metric][rows])
        columns = _columns(answered, references, metric)
        found[f"best_{short}"] = MetricSamples(_best_score, columns, columns, bounds=PERCENT)
        found[f"best_{short}_thresh"] = MetricSamples(best_threshold, columns, columns, bounds=None)
    return found


def best_null_threshold(
    answered: BestAnswers, references: Sequence[Sequence[str]], metric: str
) -> float:
    """The threshold at which the metric, `exact_match` or `f1`, is best on these questions."""
    columns = _columns(answered, references, metric)
    return best_threshold(columns, columns)


@Metric
def best_threshold(
    columns: Float[np.ndarray, "N 4"], _: Float[np.ndarray, "N 4"], times: Times
) -> Draws:
    """The threshold with the best score: the largest difference of an answer that is kept."""
    order, running, nothing = _running_scores(columns, times)
    differences = columns[order, DIFFERENCE]
    # Where no answer is kept:
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
    """Questions sorted by difference, the sum of scores with those up to each one answered, and the
    sum with none answered."""
    has_answer = columns[:, HAS_ANSWER] > 0
    order = np.argsort(columns[:, DIFFERENCE], kind="stable")
    gains = np.where(has_answer, columns[:, SCORE], -columns[:, IS_ANSWERED])
    nothing = times @ ~has_answer
    return order, nothing[:, None] + np.cumsum(times[:, order] * gains[order], axis=1), nothing


def _columns(
    answered: BestAnswers, references: Sequence[Sequence[str]], metric: str
) -> Float[np.ndarray, "N 4"]:
    has_answer = np.array([bool(each) for each in references])
    is_answered = np.array([bool(text) for text in answered.texts])
    scores = _by_metric(starmap(score_one, zip(answered.texts, references, strict=True)))[metric]
    return np.stack([has_answer, scores, answered.differences, is_answered], axis=1)


def _by_metric(scores: Iterable[AnswerScore]) -> dict[str, Float[np.ndarray, " N"]]:
    columns = zip(AnswerScore._fields, zip(*scores, strict=True), strict=True)
    return {name: np.array(values) for name, values in columns}


def _mean(values: Float[np.ndarray, " N"]) -> MetricSamples:
    return MetricSamples(mean_percent, values, values, bounds=PERCENT)

"""SQuAD: questions about a passage, and the official rules by which answers are scored.

Source: Rajpurkar et al. 2016 (arXiv:1606.05250), evaluation of version 1.1: answers are compared in
lower case, without punctuation and articles, against the reference that fits best. The module
`squad_no_answer` scores version 2.0, some of whose questions have no answer.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stillhouse.data.formats.registry import format_name
from stillhouse.data.rows import read_json, read_rows
from stillhouse.data.text import check_characters
from stillhouse.errors import DataError

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
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
    """A stretch of the passage, from the character `start` on."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question, a passage, and the answers that people gave; none where it `is_impossible` to
    answer it from the passage, and where they are not known."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    is_impossible: bool = False

    @property
    def is_labeled(self) -> bool:
        """Whether it is known what is right."""
        return self.is_impossible or bool(self.answers)


@dataclass(frozen=True)
class AnswerScore:
    """What one answer is worth, each from 0 to 1."""

    exact_match: float
    f1: float


def read_squad(path: Path) -> list[Question]:
    """The questions of a file in SQuAD's format, in order; `.gz` is decompressed.

    A table, as datasets have them, holds `id`, `question`, `context`, and `answers` with the lists
    `text` and `answer_start`. Where these are empty a question has no answer (SQuAD 2.0).

    Raises:
        DataError: no such file, not in that format, `is_impossible` beside answers or false without
            any, an answer that does not stand where it is said to, or an id that comes twice.
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
    if format_name(path) != "JSON":
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


def score(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """The mean over all questions of the references, in percent: `exact_match` and `f1`.

    A question without a prediction counts as wrong; predictions for other questions count nothing.

    Args:
        predictions: The text of the answer by the question's id.
        references: The texts that are right, at least one, by the question's id.
    """
    found = list(score_each(predictions, references).values())
    return {
        "exact_match": 100 * fmean(each.exact_match for each in found),
        "f1": 100 * fmean(each.f1 for each in found),
    }


def score_each(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, AnswerScore]:
    """The same for each question by itself, by its id.

    Raises:
        DataError: no questions, or one without references.
    """
    if not references:
        raise DataError("There are no reference answers, so there is nothing to score.")
    without = next((name for name, texts in references.items() if not texts), None)
    if without is not None:
        raise DataError(f"The question {without!r} has no reference answer.")
    return {
        name: _score(predictions[name], texts) if name in predictions else AnswerScore(0.0, 0.0)
        for name, texts in references.items()
    }


def _score(prediction: str, references: Sequence[str]) -> AnswerScore:
    said = normalized(prediction)
    right = [normalized(text) for text in references]
    return AnswerScore(
        float(said in right), max(word_f1(said.split(), text.split()) for text in right)
    )


def normalized(text: str) -> str:
    """Lower case, without punctuation, then without articles, words apart by one space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def word_f1(said: Sequence[str], right: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as it stands."""
    shared = (Counter(said) & Counter(right)).total()
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def _questions(content: Any, path: Path) -> Iterator[Question]:
    for article in _list(content, "data", str(path)):
        title = article.get("title", "?") if isinstance(article, dict) else "?"
        for number, paragraph in enumerate(_list(article, "paragraphs", f"{path}, {title}"), 1):
            where = f"{path}, {title}, paragraph {number}"
            context = _field(paragraph, "context", str, where)
            for entry in _list(paragraph, "qas", where):
                yield _question(entry, context, where)


def _rows(path: Path) -> Iterator[Question]:
    for row in read_rows(path):
        answers = _field(row.fields, "answers", dict, row.where)
        texts, starts = (_list(answers, key, row.where) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise DataError(
                f"{row.where}: {len(texts)} answers stand in `text`, {len(starts)} in "
                "`answer_start`; give as many of the one as of the other."
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
            "Correct the one or the other, or leave the question out."
        )
    for answer in answers:
        if not answer.text.strip():
            raise DataError(
                f"{where}: an answer is {answer.text!r}, which is no text. Leave the answer out; a "
                "question without answers is one that has none (SQuAD 2.0)."
            )
        if answer.start < 0 or not context.startswith(answer.text, answer.start):
            elsewhere = context.find(answer.text)
            hint = f"it stands at {elsewhere}" if elsewhere >= 0 else "it stands nowhere in it"
            raise DataError(
                f"{where}: the answer {answer.text!r} does not stand at character {answer.start} "
                f"of the context; {hint}. Correct answer_start, or leave the question out."
            )
    asked = _field(entry, "question", str, where)
    return Question(name, asked, context, answers, is_impossible=not answers)


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

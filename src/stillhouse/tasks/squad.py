"""Reader of questions in SQuAD's format: files of articles, or tables as datasets have them.

Source: Rajpurkar et al. 2016 (arXiv:1606.05250); 2018 (arXiv:1806.03822) for questions without an
answer.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.data.formats import format_of
from stillhouse.data.rows import read_json, read_rows
from stillhouse.data.text import check_characters
from stillhouse.errors import DataError

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

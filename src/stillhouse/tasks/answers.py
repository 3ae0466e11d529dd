"""The answers to the examples of a task: which there are, and whether a metric says anything of
them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.data.fetch import name_of
from stillhouse.errors import DataError
from stillhouse.tasks.labels import listed
from stillhouse.tasks.settings import (
    ClassificationTask,
    EmbeddingsTask,
    QuestionAnsweringTask,
    RegressionTask,
    TokenClassificationTask,
)
from stillhouse.tasks.task import Task
from stillhouse.tasks.text_classification import TextClassification


def check_measurable(task: Task, examples: Sequence[Any], path: Path) -> None:
    """Refuse examples of which the task's metric says nothing: a correlation with values that are
    all the same, or entities where there are none.

    Raises:
        DataError: such examples.
    """
    found = distinct_answers(task, examples)
    correlates = isinstance(task.recipe, RegressionTask | EmbeddingsTask)
    no_entity = isinstance(task.recipe, TokenClassificationTask)
    if found is None or len(found) > 1:
        return
    if correlates or no_entity or task.recipe.metric == "matthews":
        raise DataError(
            f"{name_of(path)}: all {len(examples):,} examples {described(task, found)}, so "
            f"{task.recipe.metric} cannot be measured on them. Give examples that differ."
        )


def distinct_answers(task: Task, examples: Sequence[Any]) -> set[Any] | None:
    """The answers to the examples; None for a task or for examples that have none."""
    match task.recipe:
        case ClassificationTask() | RegressionTask():
            found = {
                tuple(sorted(each.target)) if isinstance(each.target, tuple) else each.target
                for each in examples
            }
            return None if None in found else found
        case TokenClassificationTask():
            if any(words.tags is None for words in examples):
                return None
            return {"O", *(tag[2:] for words in examples for tag in words.tags if tag != "O")}
        case QuestionAnsweringTask():
            if not all(question.is_labeled for question in examples):
                return None
            return {bool(question.answers) for question in examples} | {False}
        case EmbeddingsTask() if all(example.pair is not None for example in examples):
            return {example.target for example in examples}
        case _:
            return None


def names_of(task: Task, answers: set[Any] | None) -> set[str]:
    """The names of labels or of kinds of entities among the answers."""
    if answers is None:
        return set()
    if isinstance(task, TextClassification):
        places = {
            place for each in answers for place in (each if isinstance(each, tuple) else (each,))
        }
        return {task.labels[place] for place in places}
    return answers - {"O"}


def described(task: Task, answers: set[Any]) -> str:
    match task.recipe:
        case TokenClassificationTask():
            return "have no entity (every tag is O)"
        case QuestionAnsweringTask():
            return "are questions without an answer"
        case ClassificationTask():
            names = sorted(names_of(task, answers))
            return f"have the same label, {listed(names)}" if names else "have no label"
        case _:
            return f"have the same value, {next(iter(answers))}"

"""The examples of a task: read from its files, and refused before training where nothing could be
learned from them or measured on them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from stillhouse.data.fetch import name_of
from stillhouse.errors import DataError, RecipeError
from stillhouse.finetuning.data import subsample
from stillhouse.finetuning.objective import HARD_TARGET
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.tasks.answers import check_measurable, described, distinct_answers, names_of
from stillhouse.tasks.labels import listed
from stillhouse.tasks.registry import is_labeled, task_for_training
from stillhouse.tasks.settings import (
    ClassificationTask,
    EmbeddingsTask,
    QuestionAnsweringTask,
    RegressionTask,
    TaskRecipe,
    TokenClassificationTask,
)
from stillhouse.tasks.squad import Question
from stillhouse.tasks.task import Task
from stillhouse.tasks.texts import TextExample
from stillhouse.tasks.token_classification import Words
from stillhouse.wording import counted

MOST_UNLIKE = 20  # examples that may all have different labels
UNLABELED = (
    "A student learns from unlabeled examples where losses.hard_target is 0 and every model of "
    "the task has a teacher."
)


@dataclass(frozen=True)
class TaskExamples:
    """A task with its labels, and all of its examples: to learn from, of each split, unlabeled.

    `notes` are what a person should know of them.
    """

    task: Task
    training: list[Any]
    splits: dict[str, list[Any]]
    transfer: list[Any]
    notes: list[str] = field(default_factory=list)


def check_task_data(
    name: str,
    recipe: FinetuningRecipe,
    teachers: Mapping[str, PretrainedConfig],
    paths: Mapping[str, Path],
) -> TaskExamples:
    """Read all examples of the task `name`, and refuse those that no model could learn from.

    Args:
        teachers: The configurations of teachers that are no models of the task.
        paths: The file of each source, by its key.

    Raises:
        DataError: what cannot be read, with its file and row; a step that the examples do not
            fill; labels that are all the same.
        RecipeError: a teacher for another task or other labels; a step that groups do not fill.
    """
    task = task_for_training(recipe.task, paths["train"], teachers)
    examples = training_examples(recipe, task, paths["train"])
    check_number(name, recipe, len(examples), paths["train"])
    check_training(task, examples, paths["train"])
    notes, splits = [], {}
    for split in recipe.data.splits:
        path = paths[recipe.data.key_of(split)]
        splits[split] = found = task.read(path)
        check_split(task, found, path, examples, paths["train"])
        if shared := num_shared(found, examples):
            notes.append(
                f"{name_of(path)}: {shared:,} of {counted(len(found), 'example')} also stand in "
                f"{name_of(paths['train'])}; scores on examples that were trained on are too high"
            )
    transfer = task.read(paths["transfer"], targets=False) if "transfer" in paths else []
    transfer = subsample(transfer, recipe.data.num_transfer)
    return TaskExamples(task, examples, splits, transfer, notes)


def num_shared(examples: Sequence[Any], training: Sequence[Any]) -> int:
    """Examples that a model reads in training too, whatever their labels are."""
    known = {_input_of(example) for example in training}
    return sum(_input_of(example) in known for example in examples)


def _input_of(example: Any) -> tuple[str | None, ...]:
    match example:
        case TextExample():
            return example.text, example.pair
        case Question():
            return example.question, example.context
        case Words():
            return (example.text,)
        case _:
            raise AssertionError(example)


def training_examples(recipe: FinetuningRecipe, task: Task, path: Path) -> list[Any]:
    """The examples that models learn from, without labels where there are none and nobody needs
    them.

    Raises:
        DataError: what cannot be read, with its file and row.
    """
    if is_labeled(recipe.task, path):
        examples = task.read_training(path)
    elif needs_labels(recipe):
        task.read(path, targets=False)  # what else is wrong comes first
        try:
            task.read_training(path)
        except DataError as error:
            raise DataError(f"{error} {UNLABELED}") from error
        raise AssertionError(f"{path} has labels after all")
    else:
        examples = task.read(path, targets=False)
    return subsample(examples, recipe.data.num_train)


def needs_labels(recipe: FinetuningRecipe) -> bool:
    """Whether a model learns from the labels of the training data."""
    alone = any(model.teacher is None for model in recipe.models.values())
    return alone or HARD_TARGET in recipe.losses.active()


def group_size(recipe: TaskRecipe) -> int:
    """Examples that are compared with each other."""
    return recipe.group if isinstance(recipe, EmbeddingsTask) else 1


def check_number(name: str, recipe: FinetuningRecipe, number: int, path: Path) -> None:
    """Refuse a step that groups do not fill, and data that does not fill a step."""
    wanted, group = recipe.training.examples_per_step, group_size(recipe.task)
    if wanted % group:
        raise RecipeError(
            f"finetuning.{name}.training.examples_per_step is {wanted}, no multiple of the task's "
            f"group, {group}."
        )
    if number < wanted:
        raise DataError(
            f"{path} gives {number} examples, fewer than a step's {wanted}. Give more, or lower "
            f"finetuning.{name}.training.examples_per_step."
        )


def check_training(task: Task, examples: Sequence[Any], path: Path) -> None:
    """Refuse training data whose labels are all the same.

    Raises:
        DataError: they are.
    """
    found = distinct_answers(task, examples)
    if isinstance(task.recipe, ClassificationTask) and found and not task.recipe.labels:
        _check_repeated(task, found, examples, path)
    if found is None or len(found) > 1:
        return
    what = {
        ClassificationTask: "Give examples of at least two labels.",
        RegressionTask: "Give examples of different values.",
        TokenClassificationTask: "Give sentences with entities.",
        QuestionAnsweringTask: "Give questions with answers.",
    }[type(task.recipe)]
    raise DataError(
        f"{path}: all {len(examples):,} examples {described(task, found)}, so there is nothing to "
        f"learn from them. {what}"
    )


def _check_repeated(
    task: Task, found: Collection[Any], examples: Sequence[Any], path: Path
) -> None:
    """Refuse training data of which each example has a label of its own.

    Raises:
        DataError: such data.
    """
    if len(found) == len(examples) > MOST_UNLIKE:
        names = listed(sorted(names_of(task, set(found))))
        raise DataError(
            f"{path}: each of the {len(examples):,} examples has a label of its own ({names}), "
            "so there is nothing to learn from them. Name the column of the labels as "
            "columns.target; for numbers take the task regression."
        )


def check_split(
    task: Task, examples: Sequence[Any], path: Path, training: Sequence[Any], train: Path
) -> None:
    """Refuse data on which the task's metric would say nothing: labels that never occur in
    training, or a correlation with values that are all the same.

    Raises:
        DataError: such data.
    """
    found, learned = distinct_answers(task, examples), distinct_answers(task, training)
    check_measurable(task, examples, path)
    if isinstance(task.recipe, ClassificationTask | TokenClassificationTask):
        ours, known = names_of(task, found), names_of(task, learned)
        if ours and known and not ours & known:
            raise DataError(
                f"{path}: none of its labels ({listed(sorted(ours))}) occurs in {train} "
                f"({listed(sorted(known))}). Give validation data of the same task."
            )

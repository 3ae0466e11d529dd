"""Models of a task from their folders, each with its outputs in the order of the task's labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.models.folder_check import load_config
from stillhouse.models.task_models import head_of, load_task_model, reorder_outputs
from stillhouse.tasks.asking import predict
from stillhouse.tasks.question_answering import QuestionAnswering
from stillhouse.tasks.registry import labels_of, output_order
from stillhouse.tasks.settings import QuestionAnsweringTask
from stillhouse.tasks.task import Task


def load_trained(task: Task, folder: Path) -> PreTrainedModel:
    """A model that was trained on the task.

    Raises:
        ModelError: it is not complete, or has no head for the task.
    """
    model = load_task_model(folder, task.head, {})
    _put_in_order(task, model, labels_of(model.config))
    return model


def load_start(task: Task, folder: Path, *, seed: int) -> PreTrainedModel:
    """A model to train on the task; a head that the folder does not have is drawn from the seed.

    Raises:
        ModelError: it is not complete.
    """
    own = load_config(folder)
    model = load_task_model(folder, task.head, task.settings, new_head_seed=seed)
    if head_of(own) == task.head:
        _put_in_order(task, model, labels_of(own))
    return model


def _put_in_order(task: Task, model: PreTrainedModel, own: Sequence[str]) -> None:
    order = output_order(task, own)
    if order is not None and order != sorted(order):
        reorder_outputs(model, order)


def threshold_split(recipe: FinetuningRecipe) -> str | None:
    """The split by which a model's threshold for questions without an answer is chosen; None for
    other tasks, and where the recipe gives the threshold."""
    task = recipe.task
    if not isinstance(task, QuestionAnsweringTask) or task.null_score_diff_threshold is not None:
        return None
    return recipe.training.select or next(iter(recipe.data.splits))


def set_threshold(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Any]
) -> None:
    """Write into a model's configuration when it says that a question has no answer.

    Args:
        examples: Those by which the threshold is chosen, where the recipe does not give it.
    """
    if not isinstance(task, QuestionAnswering):
        return
    threshold = task.recipe.null_score_diff_threshold
    if threshold is None and any(question.is_impossible for question in examples):
        found = predict(task, model.eval(), examples, task.encode(examples, tokenizer))
        threshold = task.best_threshold(found, examples)
    if threshold is not None or hasattr(model.config, "null_score_diff_threshold"):
        model.config.null_score_diff_threshold = threshold

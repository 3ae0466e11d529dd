"""The table of tasks, and the task of a recipe, of training data, or of a model folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from stillhouse.errors import ModelError, RecipeError
from stillhouse.families.registry import family_of
from stillhouse.models.folder_check import load_config
from stillhouse.models.task_models import head_of
from stillhouse.runs.manifest import read_manifest
from stillhouse.section import recipe_part
from stillhouse.tasks.bias import Bias
from stillhouse.tasks.continuation import Continuation
from stillhouse.tasks.embeddings import Embeddings, read_embedding_settings
from stillhouse.tasks.gender_polarity import GenderPolarity
from stillhouse.tasks.labels import Labels, labels_of
from stillhouse.tasks.multiple_choice import MultipleChoice
from stillhouse.tasks.question_answering import QuestionAnswering
from stillhouse.tasks.settings import (
    ClassificationTask,
    EmbeddingsTask,
    QuestionAnsweringTask,
    RegressionTask,
    TaskRecipe,
    TokenClassificationTask,
)
from stillhouse.tasks.task import Task
from stillhouse.tasks.template_prompts import Templates
from stillhouse.tasks.text_classification import TextClassification, TextRegression
from stillhouse.tasks.token_classification import TokenClassification
from stillhouse.tasks.word_problem import WordProblem
from stillhouse.tasks.zero_shot import LastWord

TASKS: Mapping[str, type[Task]] = {
    "classification": TextClassification,
    "regression": TextRegression,
    "question_answering": QuestionAnswering,
    "token_classification": TokenClassification,
    "embeddings": Embeddings,
    "last_word": LastWord,
    "multiple_choice": MultipleChoice,
    "continuation": Continuation,
    "word_problem": WordProblem,
    "bias": Bias,
    "templates": Templates,
    "gender_polarity": GenderPolarity,
}


def make_task(recipe: TaskRecipe, labels: Sequence[str] | Labels = ()) -> Task:
    """The task of a recipe.

    Args:
        labels: In the order of the model's outputs, where the recipe does not name them.

    Raises:
        RecipeError: a metric that does not suit the labels, or needs a positive class.
    """
    return TASKS[recipe.kind](recipe, labels)


def task_for_training(
    recipe: TaskRecipe, train: Path, teachers: Mapping[str, PretrainedConfig]
) -> Task:
    """The task that models are trained for.

    Its labels are the recipe's, or those of the training data, in the order and with the names of
    a teacher that exists already.

    Args:
        teachers: The configuration of each, by what a message calls it.

    Raises:
        DataError: what cannot be read, with its file and row.
        RecipeError: a teacher for another task or other labels.
    """
    task = make_task(recipe)
    for name, config in teachers.items():
        if head_of(config) != task.head:
            raise RecipeError(
                f"The teacher in {name} is a {(config.architectures or ['model'])[0]}, which was "
                f"not made for {recipe.kind}. Give one that was trained on the task, or another "
                "model of the task."
            )
    names = labels_of(next(iter(teachers.values()))) if teachers else ()
    task = make_task(recipe, task.labels_in(train, names))
    for place, (name, config) in enumerate(teachers.items()):
        found = task.with_labels_of(labels_of(config), f"the teacher in {name}")
        task = found if place == 0 else task
    return task


def task_of_model(folder: Path, recipe: TaskRecipe | None = None) -> Task:
    """The task of a model folder, with the model's own labels.

    Args:
        recipe: How the task's data is read, where that matters.

    Raises:
        ModelError: a model without the head of a task.
        RecipeError: a model with another head than the recipe's task, other labels, or a shorter
            context.
    """
    config = load_config(folder)
    if recipe is None or TASKS[recipe.kind].trainable:
        own = _recipe_of(folder, config)
        recipe = recipe or own
        if recipe.kind != own.kind:
            raise RecipeError(
                f"The task is {recipe.kind}, but the model in {folder} was made for {own.kind}. "
                "Give a model that was trained on the task, or another task."
            )
        check_length(recipe, config, str(folder))
    return make_task(recipe).for_model(folder, config)


def settings_of_model(folder: Path) -> dict[str, Any]:
    """The settings of the task that a model was trained on; for models from elsewhere those of
    their configuration.

    Raises:
        ModelError: a model without the head of a task.
    """
    manifest = read_manifest(folder)
    if manifest is not None and "task" in manifest.inputs.settings:
        return dict(manifest.inputs.settings["task"])
    return recipe_part(_recipe_of(folder, load_config(folder)))


def check_length(recipe: TaskRecipe, config: PretrainedConfig, model: str) -> None:
    """Refuse sequences that are longer than the model's context.

    Raises:
        RecipeError: they are.
    """
    most = family_of(config).num_positions(config)
    if recipe.max_length > most:
        raise RecipeError(
            f"The task's max_length is {recipe.max_length} tokens, but {model} takes {most}. Set "
            f"it to at most {most}."
        )


def _recipe_of(folder: Path, config: PretrainedConfig) -> TaskRecipe:
    """A task with sequences as long as the model takes; for answers the usual length at most."""
    most = family_of(config).num_positions(config)
    if (settings := read_embedding_settings(folder)) is not None:
        length = min(most, settings.max_length or most)
        return EmbeddingsTask(pooling=settings.pooling, max_length=length)
    match head_of(config):
        case "SequenceClassification" if config.num_labels == 1:
            return RegressionTask(max_length=most)
        case "SequenceClassification" if config.problem_type == "regression":
            raise ModelError(
                f"The model in {folder} gives {config.num_labels} numbers for a text "
                "(problem_type regression); Stillhouse supports regression of one number."
            )
        case "SequenceClassification":
            several = config.problem_type == "multi_label_classification"
            return ClassificationTask(multi_label=several, max_length=most)
        case "QuestionAnswering":
            return QuestionAnsweringTask(max_length=min(QuestionAnsweringTask().max_length, most))
        case "TokenClassification":
            return TokenClassificationTask(max_length=most)
        case "Body":
            return EmbeddingsTask(max_length=most)
        case _:
            kind = (config.architectures or ["model of no class"])[0]
            raise ModelError(
                f"The model in {folder} has no head for a task: it is a {kind}. Fine-tune it, or "
                "name a task that needs none, such as --task piqa (zero-shot, for causal models)."
            )

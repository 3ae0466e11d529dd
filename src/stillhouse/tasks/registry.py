"""Tasks by their recipes, and the task that a model folder was trained for."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PretrainedConfig

from stillhouse.data.rows import read_rows
from stillhouse.errors import ModelError, RecipeError
from stillhouse.families import family_of, head_of, load_config
from stillhouse.recipe_tasks import (
    ClassificationTask,
    ContinuationTask,
    EmbeddingsTask,
    LastWordTask,
    QuestionAnsweringTask,
    RegressionTask,
    TaskRecipe,
    TokenClassificationTask,
)
from stillhouse.tasks.continuation import Continuation
from stillhouse.tasks.embeddings import Embeddings
from stillhouse.tasks.last_word import LastWord
from stillhouse.tasks.question_answering import QuestionAnswering
from stillhouse.tasks.sentence_transformers import MODULES, pooling_of
from stillhouse.tasks.task import Task
from stillhouse.tasks.text_classification import TextClassification, TextRegression
from stillhouse.tasks.token_classification import TokenClassification, read_sentences, tags_in


def make_task(recipe: TaskRecipe, labels: Sequence[str] = ()) -> Task:
    """The task of a recipe.

    Args:
        labels: Of a classification or of tags, where the recipe does not give them.

    Raises:
        RecipeError: a metric that does not suit the labels.
    """
    match recipe:
        case ClassificationTask():
            return TextClassification(recipe, recipe.labels or labels)
        case RegressionTask():
            return TextRegression(recipe)
        case QuestionAnsweringTask():
            return QuestionAnswering(recipe)
        case TokenClassificationTask():
            return TokenClassification(recipe, labels)
        case EmbeddingsTask():
            return Embeddings(recipe)
        case LastWordTask():
            return LastWord(recipe)
        case ContinuationTask():
            return Continuation(recipe)


def labels_in(recipe: TaskRecipe, path: Path) -> list[str]:
    """The labels of a classification or of tags that a file of training data shows, sorted; none
    for other tasks.

    Raises:
        DataError: what cannot be read, with its file and row.
    """
    match recipe:
        case ClassificationTask(labels=None):
            rows = read_rows(path, header=recipe.header)
            shown = (row.names(recipe.columns.target) for row in rows)
            return sorted({name for names in shown for name in names})
        case TokenClassificationTask():
            return tags_in(sentence.tags for sentence in read_sentences(recipe, path))
        case _:
            return []


def task_of_model(folder: Path, recipe: TaskRecipe | None = None) -> Task:
    """The task that a model folder has the head for; its labels are the model's own.

    Args:
        recipe: How the task's data is read, where that matters.

    Raises:
        ModelError: a model without the head of a task.
        RecipeError: a model with another head than the recipe's task, other labels, or fewer
            positions.
    """
    config = load_config(folder)
    if isinstance(recipe, LastWordTask | ContinuationTask):
        return _of_a_language_model(recipe, config, folder)
    own = _recipe_of(folder, config)
    if recipe is None:
        return make_task(own, labels_of(config))
    if recipe.kind != own.kind:
        raise RecipeError(
            f"The task is {recipe.kind}, but the model in {folder} was made for {own.kind}. Give a "
            "model that was trained on the task, or another task."
        )
    check_length(recipe, config, str(folder))
    if isinstance(recipe, ClassificationTask) and recipe.labels:
        labels = in_the_models_order(recipe.labels, labels_of(config), folder)
        recipe = recipe.model_copy(update={"labels": labels})
    return make_task(recipe, labels_of(config))


def labels_of(config: PretrainedConfig) -> list[str]:
    """The model's labels in the order of its outputs."""
    names = {int(number): name for number, name in (config.id2label or {}).items()}
    return [names[number] for number in sorted(names)]


def check_length(recipe: TaskRecipe, config: PretrainedConfig, model: str) -> None:
    """Refuse sequences that are longer than the model takes.

    Raises:
        RecipeError: they are.
    """
    most = family_of(config).num_positions(config)
    if recipe.length > most:
        raise RecipeError(
            f"The task's length is {recipe.length} tokens, but {model} takes {most}. Set length to "
            f"at most {most}."
        )


def _of_a_language_model(
    recipe: LastWordTask | ContinuationTask, config: PretrainedConfig, folder: Path
) -> Task:
    """Its sequences are as long as the model takes at most."""
    family = family_of(config)
    if family.language_modeling != "causal" or head_of(config) is not None:
        raise ModelError(
            f"The task {recipe.kind} is for causal language models; the one in {folder} is a "
            f"{(config.architectures or [family.model_type])[0]}."
        )
    length = min(recipe.length, family.num_positions(config))
    return make_task(recipe.model_copy(update={"length": length}))


def _recipe_of(folder: Path, config: PretrainedConfig) -> TaskRecipe:
    """Sequences may be as long as the model takes, and for answers as usual at most."""
    most = family_of(config).num_positions(config)
    if (folder / MODULES).is_file():
        return EmbeddingsTask(pooling=pooling_of(folder), length=most)
    match head_of(config):
        case "SequenceClassification" if config.num_labels == 1:
            return RegressionTask(length=most)
        case "SequenceClassification":
            several = config.problem_type == "multi_label_classification"
            return ClassificationTask(multi_label=several, length=most)
        case "QuestionAnswering":
            usual = QuestionAnsweringTask()
            return usual.model_copy(update={"length": min(usual.length, most)})
        case "TokenClassification":
            return TokenClassificationTask(length=most)
        case "Body":
            return EmbeddingsTask(length=most)
        case _:
            raise ModelError(
                f"The model in {folder} has no head for a task: it is a "
                f"{(config.architectures or ['model of no class'])[0]}. Fine-tune it first."
            )


def in_the_models_order(wanted: Sequence[str], own: Sequence[str], folder: Path) -> list[str]:
    """A recipe's labels as the model's outputs stand for them: numbers are places, and so are all
    labels where the model names none."""
    nameless = all(label == f"LABEL_{number}" for number, label in enumerate(own))
    numbers = list(wanted) == [str(number) for number in range(len(wanted))]
    names = [label.lower() for label in own]
    if len(wanted) == len(own) and (nameless or numbers):
        return list(wanted)
    if sorted(label.lower() for label in wanted) != sorted(names):
        raise RecipeError(
            f"The task's labels are {', '.join(wanted)}, but those of the model in {folder} are "
            f"{', '.join(own)}. Name in `labels`, for each output of the model in turn, what the "
            "data calls it."
        )
    return sorted(wanted, key=lambda label: names.index(label.lower()))

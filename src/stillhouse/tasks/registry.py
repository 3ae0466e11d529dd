"""Tasks by their recipes, and the task that a model folder was trained for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from stillhouse.data.rows import read_rows
from stillhouse.errors import ModelError, RecipeError
from stillhouse.families.registry import family_of
from stillhouse.models.folder_check import load_config
from stillhouse.models.task_models import head_of
from stillhouse.runs.manifest import read_manifest
from stillhouse.section import recipe_part
from stillhouse.tasks.continuation import Continuation
from stillhouse.tasks.embeddings import Embeddings
from stillhouse.tasks.labels import Labels, is_generic, labels_of_data, listed
from stillhouse.tasks.last_word import LastWord
from stillhouse.tasks.question_answering import QuestionAnswering
from stillhouse.tasks.sentence_transformers import (
    MODULES,
    VectorSettings,
    check_recipe_of,
    vector_settings,
)
from stillhouse.tasks.settings import (
    ClassificationTask,
    ContinuationTask,
    EmbeddingsTask,
    LastWordTask,
    QuestionAnsweringTask,
    RegressionTask,
    TaskRecipe,
    TokenClassificationTask,
)
from stillhouse.tasks.squad import read_articles
from stillhouse.tasks.task import Task
from stillhouse.tasks.text_classification import (
    TextClassification,
    TextRegression,
    check_spellings,
    labels_shown,
)
from stillhouse.tasks.token_classification import (
    TokenClassification,
    is_table,
    read_sentences,
    tags_in,
    tags_of_model,
)


def make_task(recipe: TaskRecipe, labels: Sequence[str] | Labels = ()) -> Task:
    """The task of a recipe.

    Args:
        labels: In the order of the outputs of a classification or of tags, where they are not the
            recipe's own.

    Raises:
        RecipeError: a metric that does not suit the labels, or needs to know the positive one.
    """
    match recipe:
        case ClassificationTask():
            if not isinstance(labels, Labels):
                named = recipe.labels is not None
                labels = Labels.given(recipe.labels or labels, by_recipe=named)
            return TextClassification(recipe, labels)
        case RegressionTask():
            return TextRegression(recipe)
        case QuestionAnsweringTask():
            return QuestionAnswering(recipe)
        case TokenClassificationTask():
            names = labels.names if isinstance(labels, Labels) else labels
            return TokenClassification(recipe, names or recipe.labels or ())
        case EmbeddingsTask():
            return Embeddings(recipe)
        case LastWordTask():
            return LastWord(recipe)
        case ContinuationTask():
            return Continuation(recipe)


def task_for_training(
    recipe: TaskRecipe, train: Path, teachers: Mapping[str, PretrainedConfig]
) -> Task:
    """The task that models are trained for: its labels are the recipe's, or else those that the
    training data shows, in the order and with the names of a teacher that is there already.

    Args:
        teachers: The configuration of each, by what a message calls it.

    Raises:
        DataError: what cannot be read, with its file and row.
        RecipeError: a teacher that was made for something else, or for other labels.
    """
    head = make_task(recipe).head
    for name, config in teachers.items():
        if head_of(config) != head:
            raise RecipeError(
                f"The teacher in {name} is a {(config.architectures or ['model'])[0]}, which was "
                f"not made for {recipe.kind}. Give one that was trained on the task, or another "
                "model of the task."
            )
    names = labels_of(next(iter(teachers.values()))) if teachers else ()
    task = make_task(recipe, labels_in(recipe, train, names))
    for place, (name, config) in enumerate(teachers.items()):
        own = labels_of(config)
        found = _in_the_order_of(task, own, f"the teacher in {name}")
        if place and isinstance(task, TokenClassification) and set(own) != set(task.labels):
            raise RecipeError(
                f"The tags of the teacher in {name} are {listed(own)}, but those of another "
                f"teacher of the task are {listed(task.labels)}. Take teachers with the same tags."
            )
        task = found if place == 0 else task
    return task


def _in_the_order_of(task: Task, own: Sequence[str], model: str) -> Task:
    """The same task with its labels in the order of a model's outputs.

    Raises:
        RecipeError: the model has other labels.
    """
    recipe = task.recipe
    if isinstance(task, TextClassification) and isinstance(recipe, ClassificationTask):
        if recipe.labels:
            return make_task(recipe, task.spellings.in_order_of(own, model))
        return make_task(recipe, labels_of_data(task.labels, own, model))
    if isinstance(task, TokenClassification):
        named = task.recipe.labels is not None
        tags = tags_of_model(task.labels, own, model, named=named)
        return TokenClassification(task.recipe, tags, names=own)
    return task


def labels_in(recipe: TaskRecipe, path: Path, names: Sequence[str] = ()) -> list[str]:
    """The labels of a classification or of tags that a file of training data shows, numbers in
    numeric order; none for other tasks, and where the recipe names them.

    Args:
        names: Of a model's outputs: of tags that are numbers, and of labels in any spelling.

    Raises:
        DataError: what cannot be read, with its file and row; labels that look like others.
    """
    match recipe:
        case ClassificationTask(labels=None):
            shown = labels_shown(recipe, path)
            if not names:  # of a model that they are matched with
                check_spellings(shown, recipe, path)
            return shown
        case TokenClassificationTask(labels=None):
            if not is_labeled(recipe, path):
                return []
            sentences = read_sentences(recipe, path, names)
            return tags_in(sentence.tags for sentence in sentences)
        case _:
            return []


def is_labeled(recipe: TaskRecipe, path: Path) -> bool:
    """Whether a file of training data has the column of a task's labels, if it is a table.

    Raises:
        DataError: what cannot be read, with its file and row.
    """
    match recipe:
        case ClassificationTask() | RegressionTask():
            rows = read_rows(path, header=recipe.header, text_column=recipe.columns.text)
            return recipe.columns.target in rows[0].fields
        case TokenClassificationTask() if is_table(path):
            return recipe.tags in read_rows(path)[0].fields
        case QuestionAnsweringTask() if read_articles(path) is None:
            return "answers" in read_rows(path)[0].fields
        case _:
            return True


def output_order(task: Task, own: Sequence[str]) -> list[int] | None:
    """For each label of a task the output of a model that has it, by the model's own names; None
    where those do not say."""
    if isinstance(task, TextClassification):
        places = [task.spellings.find(name) for name in own]
    elif isinstance(task, TokenClassification):
        places = [task.labels.index(name) if name in task.labels else None for name in own]
    else:
        return None
    size = len(task.labels)
    if is_generic(own) or len(own) != size or set(places) != set(range(size)):
        return None
    return [places.index(place) for place in range(size)]


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
    vectors = _vectors_of(folder) or VectorSettings()
    if recipe is None:
        if isinstance(own, EmbeddingsTask):
            return Embeddings(own, vectors)
        return with_threshold_of(config, make_task(own, Labels.of_model(labels_of(config))))
    if recipe.kind != own.kind:
        raise RecipeError(
            f"The task is {recipe.kind}, but the model in {folder} was made for {own.kind}. Give a "
            "model that was trained on the task, or another task."
        )
    check_length(recipe, config, str(folder))
    if isinstance(recipe, EmbeddingsTask):
        check_recipe_of(folder, recipe)
        return Embeddings(recipe, vectors)
    if isinstance(recipe, QuestionAnsweringTask):
        return with_threshold_of(config, QuestionAnswering(recipe))
    if isinstance(recipe, ClassificationTask | TokenClassificationTask) and recipe.labels:
        return _in_the_order_of(make_task(recipe), labels_of(config), f"the model in {folder}")
    if isinstance(recipe, TokenClassificationTask):
        return TokenClassification(recipe, labels_of(config), names=labels_of(config))
    return make_task(recipe, Labels.of_model(labels_of(config)))


def settings_of_model(folder: Path) -> dict[str, Any]:
    """The settings of the task that a model was trained on here; of a model from elsewhere what its
    configuration says.

    Raises:
        ModelError: a model without the head of a task.
    """
    manifest = read_manifest(folder)
    if manifest is not None and "task" in manifest.inputs.settings:
        return dict(manifest.inputs.settings["task"])
    return recipe_part(_recipe_of(folder, load_config(folder)))


def with_threshold_of(config: PretrainedConfig, task: Task) -> Task:
    """The same task; for answers with the model's threshold, where the recipe has none."""
    threshold = getattr(config, "null_score_diff_threshold", None)
    if not isinstance(task, QuestionAnswering) or threshold is None:
        return task
    if task.recipe.null_score_diff_threshold is not None:
        return task
    update = {"null_score_diff_threshold": float(threshold)}
    return QuestionAnswering(task.recipe.model_copy(update=update))


def labels_of(config: PretrainedConfig) -> list[str]:
    """The model's labels in the order of its outputs.

    Raises:
        ModelError: they are those of other outputs.
    """
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(len(names))):
        raise ModelError(
            f"The model's config.json names labels for the outputs {sorted(names)} (id2label), but "
            f"outputs are numbered from 0 to {len(names) - 1}. Correct the numbers."
        )
    return [names[number] for number in range(len(names))]


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


def _vectors_of(folder: Path) -> VectorSettings | None:
    """What the modules of sentence-transformers say; None in a folder without them."""
    return vector_settings(folder) if (folder / MODULES).is_file() else None


def _recipe_of(folder: Path, config: PretrainedConfig) -> TaskRecipe:
    """Sequences may be as long as the model takes, and for answers as usual at most."""
    most, vectors = family_of(config).num_positions(config), _vectors_of(folder)
    if vectors is not None:
        return EmbeddingsTask(pooling=vectors.pooling, length=min(most, vectors.length or most))
    match head_of(config):
        case "SequenceClassification" if config.num_labels == 1:
            return RegressionTask(length=most)
        case "SequenceClassification" if config.problem_type == "regression":
            raise ModelError(
                f"The model in {folder} gives {config.num_labels} numbers for a text "
                "(problem_type regression); Stillhouse knows regression of one number."
            )
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

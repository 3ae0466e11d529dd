"""Models of a task: what is checked of them before anything runs, their configurations, and loading
with outputs in the task's order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import check_file, path_of
from stillhouse.data.sources import check_access, source_of
from stillhouse.errors import RecipeError
from stillhouse.families.base import with_layers
from stillhouse.families.registry import family_of
from stillhouse.finetuning.data import TaskExamples, check_task_data
from stillhouse.finetuning.objective import check_terms
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.models.folder_check import load_config, load_model_tokenizer
from stillhouse.models.load import check_folder
from stillhouse.models.task_models import (
    check_head,
    head_of,
    load_task_model,
    reorder_outputs,
)
from stillhouse.objectives.relation import check_relation
from stillhouse.stages.check import RecipeCheck
from stillhouse.tasks.labels import labels_of
from stillhouse.tasks.question_answering import QuestionAnswering
from stillhouse.tasks.registry import check_length, make_task
from stillhouse.tasks.settings import QuestionAnsweringTask
from stillhouse.tasks.task import Task, predict
from stillhouse.tokens.tokenizer import load_tokenizer

MODELS_OF_THE_RUN = ("student", "student_init", "control")


@dataclass(frozen=True)
class CheckedTask:
    """The models of a task as configurations, by name, and what they learn from.

    `teachers` are those that are no models of the task, `folders` the models that exist already, by
    the recipe's names for them. `examples` is None where they are still to be fetched.
    """

    models: dict[str, PretrainedConfig]
    teachers: dict[str, PretrainedConfig]
    folders: dict[str, Path]
    examples: TaskExamples | None


def check_task(check: RecipeCheck, name: str) -> CheckedTask:
    """Refuse a task whose models do not fit together, or whose examples cannot be read.

    Raises:
        RecipeError, ModelError, DataError, NetworkError: what training the task would refuse.
    """
    recipe = check.recipe.finetuning[name]
    for key, source in recipe.data.sources.items():
        where = f"finetuning.{name}.data.{key}"
        check_file(source, where)
        if check.run is None or not path_of(source, check.run.task_data).exists():
            check_access(source, where, offline=check.offline)
    made: dict[str, PretrainedConfig] = {}
    if check.student is not None:
        made = dict.fromkeys(MODELS_OF_THE_RUN, check.student.config)
    if check.recipe.makes_its_teacher:
        made["teacher"] = check.teacher
    folders = _folders(check, recipe, made)
    configs = {model: load_config(folder) for model, folder in folders.items()} | made
    teachers = {
        model.teacher: configs[model.teacher]
        for model in recipe.models.values()
        if model.teacher is not None and model.teacher not in recipe.models
    }
    starts = {model: configs[settings.start] for model, settings in recipe.models.items()}
    found = resolve_configs(name, recipe, starts, teachers)
    sources, examples = recipe.data.sources, None
    if not any(source_of(source).is_remote for source in sources.values()):
        paths = {key: path_of(source, Path()) for key, source in sources.items()}
        examples = check_task_data(name, recipe, teachers, paths)
    _check_folders(check, recipe, folders)
    return CheckedTask(found, teachers, folders, examples)


def _folders(
    check: RecipeCheck, recipe: FinetuningRecipe, made: Mapping[str, PretrainedConfig]
) -> dict[str, Path]:
    """The folders that models of a task start from or are taught by, by the recipe's names."""
    models = recipe.models.values()
    names = {model.start for model in models} | {model.teacher for model in models}
    names -= {None, *made} | ({*recipe.models} - {model.start for model in models})
    named = check.recipe.named_model
    folders = {
        name: check.resolve(named if name == "teacher" and named else name)
        for name in sorted(map(str, names))
    }
    for name, folder in folders.items():
        check_folder(folder, needs_weights=check.has_weights(name, folder), head=False)
    return folders


def _check_folders(
    check: RecipeCheck, recipe: FinetuningRecipe, folders: Mapping[str, Path]
) -> None:
    """Check weights and tokenizers of the models that the run does not make itself."""
    task = make_task(recipe.task)
    for settings in recipe.models.values():
        start = folders.get(settings.start)
        if start is not None:
            load_tokenizer(start)
            if check.has_weights(settings.start, start):
                own = task.model_settings
                load_task_model(start, task.head, own, new_head_seed=0, headers_only=True)
        if settings.teacher is None:
            continue
        own_teacher = recipe.models.get(settings.teacher)
        teacher = folders.get(settings.teacher if own_teacher is None else own_teacher.start)
        if own_teacher is None and teacher and check.has_weights(settings.teacher, teacher):
            load_task_model(teacher, task.head, {}, headers_only=True)
        if start is not None and teacher is not None:
            check_tokenizers(teacher, start)


def resolve_configs(
    name: str,
    recipe: FinetuningRecipe,
    starts: Mapping[str, PretrainedConfig],
    teachers: Mapping[str, PretrainedConfig],
) -> dict[str, PretrainedConfig]:
    """The configuration of each model of the task `name`.

    Args:
        starts: Of each model's start, by the model's name.
        teachers: Of teachers that are not models of the task, by name.

    Raises:
        RecipeError: a zero-shot task; an invalid layer map, length or term.
        ModelError: an architecture without the head of the task.
    """
    found: dict[str, PretrainedConfig] = {}
    task = make_task(recipe.task)
    if not task.trainable:
        raise RecipeError(
            f"finetuning.{name}.task is {recipe.task.kind}, which is zero-shot (`stillhouse "
            "score`). To train a model on text, give the text as `corpus`."
        )
    for model, settings in recipe.models.items():
        check_length(recipe.task, starts[model], f"the start of {model}")
        check_head(starts[model], task.head)
        found[model] = starts[model]
        layer_map = layer_map_of(name, recipe, model, starts[model])
        if layer_map is not None:
            found[model] = with_layers(starts[model], layer_map)
        if settings.teacher is not None:
            check_terms(task, recipe.losses)
            teacher = teachers.get(settings.teacher) or found[settings.teacher]
            check_relation(recipe.losses.relation, found[model], teacher)
            check_length(recipe.task, teacher, f"the teacher of {model}")
    return found


def check_tokenizers(teacher: Path, student: Path) -> None:
    """Refuse a teacher with another vocabulary than the student.

    Raises:
        RecipeError: their vocabularies differ.
    """
    theirs, ours = (load_model_tokenizer(folder).get_vocab() for folder in (teacher, student))
    if theirs != ours:
        raise RecipeError(
            f"The teacher in {teacher} has another tokenizer than the student, which "
            "must read the same tokens."
        )


def layer_map_of(
    name: str, recipe: FinetuningRecipe, model: str, start: PretrainedConfig
) -> list[int] | None:
    """The layers that a model copies from its start; None for all of them.

    Raises:
        RecipeError: a layer that the start does not have.
    """
    wanted = recipe.models[model].layer_map
    if wanted is None:
        return None
    key = f"finetuning.{name}.models.{model}.layer_map"
    return family_of(start).layer_map(wanted, start, key=key)


def load_trained(task: Task, folder: Path) -> PreTrainedModel:
    """A model that was trained on the task.

    Raises:
        ModelError: it is incomplete, or has no head for the task.
    """
    model = load_task_model(folder, task.head, {})
    _put_in_order(task, model, labels_of(model.config))
    return model


def load_start(task: Task, folder: Path, *, seed: int) -> PreTrainedModel:
    """A model to train on the task; a head that the folder lacks is initialized from the seed.

    Raises:
        ModelError: it is incomplete.
    """
    own = load_config(folder)
    model = load_task_model(folder, task.head, task.model_settings, new_head_seed=seed)
    if head_of(own) == task.head:
        _put_in_order(task, model, labels_of(own))
    return model


def _put_in_order(task: Task, model: PreTrainedModel, own: Sequence[str]) -> None:
    order = task.output_order(own)
    if order is not None and order != sorted(order):
        reorder_outputs(model, order)


def threshold_split(recipe: FinetuningRecipe) -> str | None:
    """The split on which the threshold for questions without an answer is chosen; None for other
    tasks, and where the recipe gives the threshold."""
    task = recipe.task
    if not isinstance(task, QuestionAnsweringTask) or task.null_score_diff_threshold is not None:
        return None
    return recipe.training.select or next(iter(recipe.data.splits))


def set_threshold(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Any]
) -> None:
    """Write the threshold for questions without an answer into a model's configuration.

    Args:
        examples: Those on which it is chosen, where the recipe does not give it.
    """
    if not isinstance(task, QuestionAnswering):
        return
    threshold = task.recipe.null_score_diff_threshold
    if threshold is None and any(question.is_impossible for question in examples):
        found = predict(task, model.eval(), examples, task.encode(examples, tokenizer))
        threshold = task.best_threshold(found, examples)
    if threshold is not None or hasattr(model.config, "null_score_diff_threshold"):
        model.config.null_score_diff_threshold = threshold

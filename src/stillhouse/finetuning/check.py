"""What is checked of a task before anything runs: its models as configurations, its examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from stillhouse.data.rows import check_file, path_of
from stillhouse.data.sources import check_access, source_of
from stillhouse.finetuning.data import TaskExamples, check_task_data
from stillhouse.finetuning.finetune import check_tokenizers
from stillhouse.finetuning.models import resolve_configs
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.models.folder_check import check_folder, load_config
from stillhouse.models.task_models import load_task_model
from stillhouse.stages.check import RecipeCheck
from stillhouse.stages.context import ModelRef
from stillhouse.tasks.registry import make_task
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
    if check.recipe.trains_its_teacher:
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
        start, teacher = folders.get(settings.start), None
        if start is not None:
            load_tokenizer(start)
            if check.has_weights(settings.start, start):
                own = task.model_settings
                load_task_model(start, task.head, own, new_head_seed=0, headers_only=True)
        if settings.teacher in recipe.models:
            teacher = folders.get(recipe.models[settings.teacher].start)
        elif settings.teacher is not None and settings.teacher in folders:
            teacher = folders[settings.teacher]
            if check.has_weights(settings.teacher, teacher):
                load_task_model(teacher, task.head, {}, headers_only=True)
        if start is not None and teacher is not None:
            check_tokenizers(ModelRef(teacher, ""), ModelRef(start, ""))

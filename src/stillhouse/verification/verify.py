"""`stillhouse verify`: every check of a recipe, as a table."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.data.rows import fetch, path_of
from stillhouse.errors import RecipeError
from stillhouse.finetuning.data import group_size, training_examples
from stillhouse.finetuning.models import layer_map_of, load_start, load_trained
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.models.folder_check import load_config
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model
from stillhouse.models.task_models import task_model_with_num_layers
from stillhouse.objectives.language_model import Teacher
from stillhouse.recipe import Recipe
from stillhouse.tasks.registry import task_for_training
from stillhouse.tokens.packing import open_source
from stillhouse.tokens.tokenizer import load_tokenizer, open_tokenizer, special_tokens
from stillhouse.training.device import pick_device
from stillhouse.verification.checks import Check
from stillhouse.verification.language import LanguageCase, language_checks
from stillhouse.verification.scratch import prepare_scratch
from stillhouse.verification.split import SEQUENCES
from stillhouse.verification.tasks import TaskCase, task_checks

TOKENS = 1024  # of the sequences looked at, about
FEWEST_SEQUENCES = 2
MOST_COMPARED = 4  # of a group of texts that are compared with each other


def verify_recipe(name: str, recipe: Recipe, *, offline: bool) -> dict[str, Any]:
    """Every check of the recipe, by what it trains. Writes to a temporary folder only.

    Raises:
        StillhouseError: the recipe, its teacher or its text cannot be used.
    """
    parts: dict[str, list[Check]] = {}
    if recipe.corpus is not None:
        with tempfile.TemporaryDirectory(prefix="stillhouse-verify-") as folder:
            case = language_case(recipe, Path(folder), offline=offline)
            parts["distillation"] = list(language_checks(case))
    for task, settings in recipe.finetuning.items():
        with tempfile.TemporaryDirectory(prefix="stillhouse-verify-") as folder:
            own = task_case(task, settings, recipe, Path(folder), offline=offline)
            parts[task] = list(task_checks(own, Path(folder)))
    checks = {part: [check.as_json() for check in found] for part, found in parts.items()}
    failed = sum(not check.passed for found in parts.values() for check in found)
    return {"recipe": name, "checks": checks, "failed": failed, "tables": parts}


def language_case(recipe: Recipe, folder: Path, *, offline: bool) -> LanguageCase:
    """The recipe's own stages on its first text, in this folder, and what is to be looked at."""
    small, pipeline = prepare_scratch(recipe, folder, offline=offline)
    run, device = pipeline.run, pick_device()
    family, student = load_model(run.student_init)
    teacher_family, teacher = load_model(pipeline.models.teacher_folder)
    for model in (student, teacher):
        model.to(device)  # pyright: ignore[reportArgumentType]
    tokenizer = open_tokenizer(run.tokens)
    special = special_tokens(tokenizer, small.tokens.language_modeling)
    source = open_source(run.tokens, small.tokens, "train")
    whole = source.num_sequences - 1  # the last sequence may end in padding
    number = min(whole, max(FEWEST_SEQUENCES, TOKENS // small.tokens.sequence_length))
    causal = small.tokens.language_modeling == "causal"
    begins = special.end_of_text if causal else special.cls
    if causal and small.tokens.attend_across_documents:
        begins = None
    pad = special.end_of_text if causal else special.pad
    assert pad is not None
    return LanguageCase(
        small,
        run,
        Teacher(teacher_family, teacher.requires_grad_(False)),
        family,
        student,
        source,
        np.arange(max(1, number)),
        begins,
        pad,
    )


def task_case(
    name: str, settings: FinetuningRecipe, recipe: Recipe, folder: Path, *, offline: bool
) -> TaskCase:
    """The task's first student with a teacher, and the task's first examples.

    A model that the recipe trains before (its own student, a teacher fine-tuned on the task) is
    taken as it starts: the checks do not depend on how good it is.
    """
    for key, source in settings.data.sources.items():
        where = f"finetuning.{name}.data.{key}"
        fetch(source, folder, where, lambda _: None, offline=offline)
    chosen = next(
        (m for m, own in settings.models.items() if own.teacher), next(iter(settings.models))
    )
    taught_by = settings.models[chosen].teacher or chosen
    start, teacher_start = (
        resolve_folder(_origin(model, settings, recipe), offline=offline)
        for model in (chosen, taught_by)
    )
    path = path_of(settings.data.train, folder)
    from_elsewhere = taught_by not in settings.models
    configs = {str(teacher_start): load_config(teacher_start)} if from_elsewhere else {}
    task = task_for_training(settings.task, path, configs)
    if from_elsewhere:
        teacher = load_trained(task, teacher_start)
    else:
        teacher = load_start(task, teacher_start, seed=1)  # not the student's head
    student = load_start(task, start, seed=0)
    layers = layer_map_of(name, settings, chosen, student.config)
    if layers is not None:
        student = task_model_with_num_layers(student, layers)
    for model in (student, teacher):
        model.eval().to(pick_device())  # pyright: ignore[reportArgumentType]
    group = min(MOST_COMPARED, group_size(settings.task))
    examples = training_examples(settings, task, path)[: SEQUENCES * group + 1]
    encoded = [each for own in task.encode(examples, load_tokenizer(start)) for each in own]
    whole = len(encoded) // group * group
    return TaskCase(task, settings, student, teacher.requires_grad_(False), encoded[:whole], group)


def _origin(model: str, settings: FinetuningRecipe, recipe: Recipe) -> str:
    """The name or folder that a model of a task starts from in the end."""
    if model in settings.models:
        model = settings.models[model].start
    if model in ("teacher", "student", "student_init", "control"):
        if recipe.named_model is None:
            raise RecipeError(
                f"The task's model starts from {model}, which this recipe trains from random "
                "weights. Run the recipe, then verify it with `teacher:` set to the folder of its "
                "student."
            )
        return recipe.named_model
    return model

"""The initial student: teacher + layer map -> student-init/.

Its weights are copied from the teacher's layers, drawn at random, or loaded from a folder.
"""

import os
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from stillhouse.errors import ModelError
from stillhouse.families.registry import check_sequence_length
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import empty_model, load_model, save_model
from stillhouse.models.special_ids import take_generation_config
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import Inputs, commit_folder
from stillhouse.section import recipe_part
from stillhouse.stages.context import StageContext
from stillhouse.student.plan import StudentPlan, plan_student
from stillhouse.tokens.tokenizer import check_same_tokenizer, check_vocabulary, open_tokenizer


def initialize_inputs(recipe: Recipe, teacher_fingerprint: str, seed: int) -> Inputs:
    """The inputs of the initial student. Copied weights do not depend on the seed."""
    settings = {"student": recipe_part(recipe.student)}
    return Inputs(
        "init",
        settings,
        {"teacher": teacher_fingerprint},
        seed if recipe.student.weights == "random" else None,
    )


def initialize(context: StageContext, teacher_folder: Path, inputs: Inputs) -> None:
    """Make the student and commit it as `student-init/`."""
    recipe, run = context.recipe, context.run
    teacher_config = load_config(teacher_folder)
    check_sequence_length(recipe.tokens, teacher_config)
    tokenizer = open_tokenizer(run.tokens)
    check_vocabulary(tokenizer, teacher_config.vocab_size, f"the teacher in {teacher_folder}")
    check_same_tokenizer(tokenizer, teacher_folder)
    plan = plan_student(teacher_config, recipe.student)
    if recipe.student.weights == "teacher":
        _, teacher = load_model(teacher_folder)
        student = student_from_teacher(teacher, plan)
    elif recipe.student.weights == "random":
        student = random_student(plan, context.seed)
    else:
        student = student_from_folder(Path(recipe.student.weights).expanduser(), plan)
    if recipe.student.weights in ("teacher", "random"):
        take_generation_config(student, teacher_folder)
    facts = {"layer_map": plan.layer_map}
    with commit_folder(run.student_init, inputs, facts, overwrite=context.overwrite) as folder:
        save_model(student, tokenizer, folder)


def student_from_teacher(teacher: PreTrainedModel, plan: StudentPlan) -> PreTrainedModel:
    """A student with its teacher's weights, layer i from teacher layer layer_map[i]."""
    student = random_student(plan, seed=0)
    weights = plan.kind.weights(dict(teacher.named_parameters()), plan.layer_map)
    parameters = dict(student.named_parameters())
    assert set(parameters) == set(weights), sorted(set(parameters) ^ set(weights))
    student.load_state_dict(weights, strict=False)  # a tied weight has one name there
    return student


def random_student(plan: StudentPlan, seed: int) -> PreTrainedModel:
    """A student with the architecture's own random initialization."""
    torch.manual_seed(seed)
    return getattr(transformers, plan.family.model_class)(plan.config).eval()


def check_initial_weights(weights: str, plan: StudentPlan) -> None:
    """Check a folder for `student_from_folder` by the headers of its weights.

    Raises:
        ModelError: no such folder, or a model of another shape.
    """
    if weights not in ("teacher", "random"):
        student_from_folder(Path(weights).expanduser(), plan, headers_only=True)


def student_from_folder(
    folder: Path, plan: StudentPlan, *, headers_only: bool = False
) -> PreTrainedModel:
    """A student whose weights are loaded from a model folder of the planned shape.

    Raises:
        ModelError: no such folder, or a model of another shape.
    """
    if not os.path.isdir(folder):  # False for every path that cannot be
        raise ModelError(
            f"student.weights is {folder}, which is neither teacher, random nor a folder."
        )
    _, student = load_model(folder, headers_only=headers_only)
    planned = empty_model(plan.config)
    wanted = {name: tuple(p.shape) for name, p in planned.named_parameters()}
    found = {name: tuple(p.shape) for name, p in student.named_parameters()}
    if wanted != found:
        differ = sorted(set(wanted.items()) ^ set(found.items()))
        raise ModelError(
            f"The model in {folder} is not the student this recipe describes; they differ in "
            f"{len(differ)} "
            f"parameters, such as {differ[0][0]}."
        )
    return student

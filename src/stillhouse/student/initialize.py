"""The initial student: teacher + layer map -> student-init/.

Its weights are copied from the teacher's layers, drawn at random, or loaded from a folder. Layers
that the recipe does not name are chosen by their importance.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from stillhouse.errors import ModelError
from stillhouse.families.registry import check_sequence_length, family_of
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import empty_model, load_model, save_model
from stillhouse.models.special_ids import take_generation_config
from stillhouse.runs.manifest import Inputs, commit_folder
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part
from stillhouse.stages.context import ModelRef, StageContext, require_output, verified_fingerprint
from stillhouse.student.axes import sizes_of
from stillhouse.student.calibration import Calibration, calibration_of, calibration_sources
from stillhouse.student.importance import choose_layers
from stillhouse.student.plan import StudentPlan, plan_student
from stillhouse.student.reconstruction import reconstruct
from stillhouse.student.settings import StudentRecipe
from stillhouse.student.width import KeptWidths, choose_widths, narrow_parameters
from stillhouse.tokens.tokenizer import check_same_tokenizer, check_vocabulary, open_tokenizer
from stillhouse.training.device import pick_device
from stillhouse.wording import counted


def initialize_inputs(context: StageContext, teacher: ModelRef) -> Inputs:
    """The inputs of the initial student. Copied weights do not depend on the seed, and named layers
    not on a text."""
    recipe = context.recipe.student
    student, importance = recipe_part(recipe), recipe.importance
    sources = {"teacher": teacher.fingerprint}
    if recipe.budget is not None:
        sources["race"] = require_output(context.run.race, "race").fingerprint
        return Inputs("init", {"student": student}, sources)
    if plan_student(load_config(teacher.folder), recipe).is_measured:
        sources |= calibration_sources(importance, context.run)
    else:
        del student["importance"]
    seeded = recipe.weights == "random"
    return Inputs("init", {"student": student}, sources, context.seed if seeded else None)


def initialize(context: StageContext, teacher_folder: Path, inputs: Inputs) -> None:
    """Make the student and commit it as `student-init/`."""
    recipe, run = context.recipe, context.run
    wanted, facts = recipe.student, {}
    if wanted.budget is not None:
        wanted, facts = raced_student(run)
    teacher_config = load_config(teacher_folder)
    check_sequence_length(recipe.tokens, teacher_config)
    tokenizer = open_tokenizer(run.tokens)
    check_vocabulary(tokenizer, teacher_config.vocab_size, f"the teacher in {teacher_folder}")
    check_same_tokenizer(tokenizer, teacher_folder)
    plan = plan_student(teacher_config, wanted)
    if wanted.weights == "teacher":
        _, teacher = load_model(teacher_folder)
        parts = measured_parts(context, teacher, plan)
        if parts.layers is not None:
            plan = plan_student(teacher_config, wanted, chosen=parts.layers["kept"])
            facts = {"importance": parts.layers}
        facts |= {"kept": parts.widths.facts()}
        student = student_from_teacher(teacher, plan, parts.widths)
        if wanted.reconstruct:
            facts |= {"reconstruction": reconstructed(context, teacher, student, plan, parts)}
    elif wanted.weights == "random":
        student = random_student(plan, context.seed)
    else:
        weights = Path(wanted.weights).expanduser()
        student = student_from_folder(weights, plan)
        if wanted.vocabulary is not None:  # of equally many tokens, others may have been kept
            check_same_tokenizer(tokenizer, weights)
    if wanted.weights in ("teacher", "random"):
        take_generation_config(student, teacher_folder)
    facts = {"layer_map": plan.layer_map, **facts}
    with commit_folder(run.student_init, inputs, facts, overwrite=context.overwrite) as folder:
        save_model(student, tokenizer, folder)


def raced_student(run: RunFolder) -> tuple[StudentRecipe, dict[str, Any]]:
    """The winner of the race of this run, with the weights it was cut to, and the race as facts of
    a manifest.

    Raises:
        RunError: the race has not been held, or a result of it is damaged.
    """
    verified_fingerprint(run.race, "race")
    race = json.loads(run.race.read_text(encoding="utf-8"))
    folder = run.candidate(race["winner"]).student_init
    cut = require_output(folder, "race").facts
    own_facts = {key: cut[key] for key in ("kept", "reconstruction") if key in cut}
    verified_fingerprint(folder, "race")
    own = {**race.pop("student"), "weights": str(folder), "reconstruct": False}
    student = StudentRecipe.model_validate(own)
    return student, {"importance": race.pop("importance"), **own_facts, "race": race}


@dataclass(frozen=True)
class MeasuredParts:
    """What is kept of a teacher: its layers with their scores, as plain values, where they are
    chosen; and its channels and heads, where it becomes narrower."""

    layers: dict[str, Any] | None
    widths: KeptWidths


def measured_parts(
    context: StageContext, teacher: PreTrainedModel, plan: StudentPlan
) -> MeasuredParts:
    """What matters most of the teacher; measured once for all seeds."""
    if "parts" not in context.shared:
        context.shared["parts"] = _measure_parts(context, teacher, plan)
    return context.shared["parts"]


def _measure_parts(
    context: StageContext, teacher: PreTrainedModel, plan: StudentPlan
) -> MeasuredParts:
    layers = None
    if plan.choice is None and sizes_of(plan.narrow) == sizes_of(teacher.config):
        return MeasuredParts(None, KeptWidths())
    text = _calibration(context, teacher)
    context.reporter.say(f"init: measuring the teacher on {counted(text.num_tokens, 'token')}")
    family = family_of(teacher.config)
    teacher.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    if plan.choice is not None:
        found = choose_layers(plan.choice, family, teacher, text)
        layers = {**asdict(found), "tokens": text.num_tokens}
    widths = choose_widths(family, teacher, plan.narrow, text)
    teacher.to(device="cpu")  # pyright: ignore[reportCallIssue]
    return MeasuredParts(layers, widths)


def _calibration(context: StageContext, teacher: PreTrainedModel) -> Calibration:
    recipe = context.recipe
    return calibration_of(
        recipe.student.importance,
        recipe.tokens,
        context.run.tokens,
        teacher.config,
        offline=context.offline,
    )


def reconstructed(
    context: StageContext,
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    plan: StudentPlan,
    parts: MeasuredParts,
) -> dict[str, Any]:
    """Reconstruct a student that was cut from its teacher, once for all seeds; the facts of it."""
    if "reconstruction" not in context.shared:
        text, device = _calibration(context, teacher), pick_device()
        number = counted(text.num_tokens, "token")
        context.reporter.say(f"init: fitting the student to its teacher on {number}")
        for model in (teacher, student):
            model.to(device=device)  # pyright: ignore[reportCallIssue]
        found = reconstruct(teacher, student, plan.layer_map, text, hidden=parts.widths.hidden)
        for model in (teacher, student):
            model.to(device="cpu")  # pyright: ignore[reportCallIssue]
        context.shared["reconstruction"] = found
    found = context.shared["reconstruction"]
    student.load_state_dict(found.weights, strict=False)
    return found.facts()


def student_from_teacher(
    teacher: PreTrainedModel, plan: StudentPlan, kept: KeptWidths | None = None
) -> PreTrainedModel:
    """A student with its teacher's weights, layer i from teacher layer layer_map[i].

    Args:
        kept: What a narrower student keeps of its teacher's widths.
    """
    student = random_student(plan, seed=0)
    family = family_of(teacher.config)
    theirs = narrow_parameters(family, teacher, plan.narrow, kept or KeptWidths())
    weights = plan.kind.weights(theirs, plan.layer_map)
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

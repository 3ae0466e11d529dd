"""Distils the initial student, and trains its controls: student-init/ -> student/, control/.

A control is the same student with the same initial weights, trained without a teacher: on the same
tokens in the same order, or for the same training time.
"""

import shutil
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from stillhouse.distillation.cache import CacheWriter, cache_inputs
from stillhouse.distillation.settings import ModelName
from stillhouse.errors import RecipeError, RunError
from stillhouse.families.base import Family
from stillhouse.models.folder_check import load_config, weight_dtype
from stillhouse.models.load import load_model, save_model
from stillhouse.objectives.language_model import (
    LANGUAGE_MODELING_ALONE,
    LanguageModelObjective,
    Teacher,
    needs_hidden,
)
from stillhouse.objectives.projection import add_projection
from stillhouse.objectives.relation import check_relation
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import (
    Inputs,
    commit_folder,
    facts_of,
    fingerprint_of,
    is_up_to_date,
    read_manifest,
)
from stillhouse.section import recipe_part
from stillhouse.stages.context import StageContext
from stillhouse.tokens.batches import SequenceSource
from stillhouse.tokens.mixture import as_drawn
from stillhouse.tokens.packing import open_source
from stillhouse.tokens.teacher_cache import FixedMaskSource, TeacherCache
from stillhouse.tokens.tokenizer import open_tokenizer
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.cost import (
    DTYPES,
    Roofline,
    count_flops,
    measure_roofline,
    planned_step,
    projection_size,
)
from stillhouse.training.device import pick_device, pick_precision
from stillhouse.training.engine import compile_body, train_and_commit
from stillhouse.training.job import TrainingJob, plan_batches
from stillhouse.training.metrics import read_metrics
from stillhouse.training.parallel import shard_layers
from stillhouse.training.settings import PretrainingRecipe, result_settings


def has_fixed_masks(recipe: Recipe) -> bool:
    """Whether student and controls use one fixed mask per sequence, that of the teacher cache."""
    return recipe.cache is not None and recipe.tokens.language_modeling == "masked"


class Distillation:
    """One recipe's distillation for one seed; each model is trained and committed in turn."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.recipe = context.recipe
        self.run = context.run
        self.ranks = context.ranks
        self.teacher = context.models.teacher
        self.device = pick_device()

    def inputs(self, model: ModelName) -> Inputs:
        """The inputs of one trained model; a control does not depend on the teacher or its
        terms."""
        recipe, run = self.recipe, self.run
        outputs = {"tokens": run.tokens, "student-init": run.student_init}
        sources = {name: fingerprint_of(output) for name, output in outputs.items()}
        training = result_settings(recipe.distillation)
        del training["control"]
        if model == "control":
            shared = PretrainingRecipe.model_fields
            training = {key: training[key] for key in shared if key in training}
        else:
            sources["teacher"] = self.teacher.fingerprint
        settings = {
            "distillation": training,
            "tokens": recipe_part(recipe.tokens),
            "freeze": list(recipe.student.freeze),
            **({"masks": "fixed"} if has_fixed_masks(recipe) else {}),
        }
        return Inputs(f"distill {model}", settings, sources, self.context.seed)

    def is_done(self, model: ModelName) -> bool:
        return is_up_to_date(self.run.model(model), self.inputs(model))

    def make(self, model: ModelName) -> None:
        """Write the folder of one model unless it is up to date; before the student, the teacher
        cache where the recipe has one."""
        context, run = self.context, self.run
        caches = model == "student" and self.recipe.cache is not None
        if caches and not self.ranks.on_rank0(lambda: self.is_done(model)):
            write = self.write_cache
            context.once(run.teacher_cache, self.cache_inputs, write, on_all_ranks=True)
            context.verify(run.teacher_cache)
        context.once(
            run.model(model),
            partial(self.inputs, model),
            partial(self.train, model),
            on_all_ranks=True,
        )
        # A process that was killed right after its commit has left its checkpoints.
        remove = partial(shutil.rmtree, run.checkpoints(model), ignore_errors=True)
        self.ranks.on_rank0(remove)

    def cache_inputs(self) -> Inputs:
        return cache_inputs(self.recipe, self.run, self.teacher.fingerprint)

    def write_cache(self, inputs: Inputs) -> None:
        """Write the teacher cache, resuming one that was started."""
        self.context.verify(self.run.tokens)
        writer = CacheWriter(self.recipe, self.run, self._live_teacher(alone=True), self.ranks)
        writer.write(inputs, self.context.reporter, overwrite=self.context.overwrite)

    def train(self, model: ModelName, inputs: Inputs) -> None:
        """Train one model to the end, resuming from a checkpoint if there is one, and commit its
        folder."""
        self.context.verify(self.run.tokens, self.run.student_init)
        recipe, reporter = self.recipe.distillation, self.context.reporter
        checkpoints = Checkpoints(
            self.run.checkpoints(model),
            inputs,
            recipe.checkpoint,
            reporter.say,
            self.ranks,
            overwrite=self.context.overwrite,
        )
        family, student = load_model(self.run.student_init)
        freeze(student, family, self.recipe.student.freeze)
        if model == "student" and needs_hidden(recipe.losses):
            add_projection(
                student,
                load_config(self.teacher.folder),
                kept=kept_hidden(self.run.student_init),
                seed=self.context.seed,
            )
        source, objective = self._data_and_objective(family, model)
        source = as_drawn(source, self.run.tokens)
        num_steps = None
        if model == "control_same_time":
            num_steps = self.ranks.on_rank0(self._steps_of_same_time)
        job = TrainingJob(
            model,
            student,
            objective,
            plan_batches(source, recipe, seed=self.context.seed, num_steps=num_steps),
            recipe,
            checkpoints,
            self.context.metrics,
            self.device,
            self._roofline(student, model),
            self.ranks,
            teacher_sharded=model == "student" and recipe.teacher_sharded,
        )
        what = f"the {model.replace('_', ' ')}"
        train_and_commit(job, what, reporter, partial(self._commit, model, inputs))

    def _commit(
        self, model: ModelName, inputs: Inputs, trained: PreTrainedModel, facts: dict[str, Any]
    ) -> None:
        if model == "student" and self.recipe.cache is not None:
            facts["training"]["teacher_cache_seconds"] = self._cache_seconds()
        target, overwrite = self.run.model(model), self.context.overwrite
        stored = weight_dtype(self.teacher.folder, load_config(self.teacher.folder))
        trained.to(device="cpu", dtype=stored)  # pyright: ignore[reportCallIssue]
        with commit_folder(target, inputs, facts, overwrite=overwrite) as folder:
            save_model(trained, open_tokenizer(self.run.tokens), folder)

    def _data_and_objective(
        self, family: Family, model: ModelName
    ) -> tuple[SequenceSource, LanguageModelObjective]:
        source = open_source(self.run.tokens, self.recipe.tokens, "train")
        if model != "student":
            source = FixedMaskSource(source) if has_fixed_masks(self.recipe) else source
            return source, LanguageModelObjective(family, LANGUAGE_MODELING_ALONE)
        check_relation(
            self.recipe.distillation.losses.relation,
            load_config(self.run.student_init),
            load_config(self.teacher.folder),
        )
        teacher: Teacher | Literal["cached"] = self._live_teacher(
            alone=self.recipe.cache is not None
        )
        if self.recipe.cache is not None:
            cache = TeacherCache(self.run.teacher_cache)
            writer = CacheWriter(self.recipe, self.run, teacher, self.ranks)
            loss = writer.check(cache, self.context.seed)
            self.context.reporter.say(f"teacher cache: {loss:.4f} nats a row from the live teacher")
            source, teacher = FixedMaskSource(source, cache), "cached"
        recipe = self.recipe.distillation
        return source, LanguageModelObjective(
            family, recipe.losses, teacher=teacher, temperature=recipe.temperature
        )

    def _live_teacher(self, *, alone: bool = False) -> Teacher:
        """The teacher on this rank: sharded if the recipe says so, unless `alone`."""
        family, model = load_model(self.teacher.folder)
        dtype = DTYPES[pick_precision(self.recipe.distillation.precision, self.device)]
        model.requires_grad_(False).to(dtype=dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
        sharded = self.recipe.distillation.teacher_sharded and self.ranks.size > 1 and not alone
        if sharded:
            shard_layers(model, self.ranks, self.device)
        model.to(self.device)  # pyright: ignore[reportArgumentType]
        if not sharded:
            compile_body(model, self.recipe.distillation, self.device)
        return Teacher(family, model)

    def _roofline(self, student: PreTrainedModel, model: ModelName) -> Roofline:
        recipe, tokens = self.recipe.distillation, self.recipe.tokens
        losses = recipe.losses if model == "student" else LANGUAGE_MODELING_ALONE
        step = planned_step(losses, tokens, recipe, self.device)
        teacher = load_config(self.teacher.folder) if model == "student" else None
        size = projection_size(losses, student.config, teacher)
        live = teacher if self.recipe.cache is None else None
        cost = count_flops(step, student.config, live, projection=size)
        return measure_roofline(cost, self.device)

    def _steps_of_same_time(self) -> int:
        """The control's number of steps for the student's training time, by the median step times
        of this run; the time of the teacher cache counts as the student's."""
        student = _step_seconds(self.run.metrics, "student")
        control = _step_seconds(self.run.metrics, "control")
        if not student or not control:
            raise RunError(
                "The control of the same time needs the step times of the student and of the "
                "control of the same tokens. Set distillation.control to both."
            )
        seconds = len(student) * statistics.median(student) + self._cache_seconds()
        return round(seconds / statistics.median(control))

    def _cache_seconds(self) -> float:
        manifest = read_manifest(self.run.teacher_cache) if self.recipe.cache else None
        return manifest.seconds if manifest is not None else 0.0


def _step_seconds(metrics: Path, model: ModelName) -> list[float]:
    totals = [line["seconds"] for line in read_metrics(metrics, model)]
    return [after - before for before, after in zip([0.0, *totals], totals, strict=False)]


def kept_hidden(student_init: Path) -> list[int]:
    """The teacher's hidden channels that an initial student keeps, by its manifest; empty where it
    keeps all, or was not cut from its teacher."""
    return facts_of(student_init).get("kept", {}).get("hidden", [])


def freeze(model: PreTrainedModel, family: Family, names: Sequence[str]) -> None:
    """Freeze the named embeddings.

    Raises:
        RecipeError: the student's family has no such embeddings.
    """
    check_frozen(family, names)
    for name in names:
        model.get_parameter(family.embeddings[name]).requires_grad_(False)


def check_frozen(family: Family, names: Sequence[str]) -> None:
    """Check that a student of this family has the named embeddings.

    Raises:
        RecipeError: it does not.
    """
    for name in names:
        if name not in family.embeddings:
            raise RecipeError(
                f"student.freeze names {name}, which a {family.model_type} student does not have. "
                f"It has {', '.join(family.embeddings)}."
            )

"""Trains the recipe's teacher, from random weights or from another model: tokens/ -> teacher/."""

from dataclasses import asdict
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.families.registry import check_sequence_length, family_named, family_of
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import load_model, save_model
from stillhouse.models.vocabulary import keep_tokens
from stillhouse.objectives.language_model import LANGUAGE_MODELING_ALONE, LanguageModelObjective
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import Inputs, commit_folder, fingerprint_of
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part
from stillhouse.stages.context import ModelRef, StageContext
from stillhouse.teacher.settings import TeacherRecipe
from stillhouse.tokens.mixture import as_drawn
from stillhouse.tokens.packing import open_source
from stillhouse.tokens.tokenizer import num_ids, open_tokenizer, special_tokens
from stillhouse.tokens.vocabulary import read_kept
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.cost import count_flops, measure_roofline, planned_step
from stillhouse.training.device import pick_device
from stillhouse.training.engine import train_and_commit
from stillhouse.training.job import TrainingJob, plan_batches
from stillhouse.training.settings import result_settings

SEED = 0  # whatever the students' seeds are, so that all of them learn from one teacher


def teacher_inputs(recipe: Recipe, run: RunFolder, start: ModelRef | None) -> Inputs:
    """What the trained teacher is made from; `start` is the model that it is fine-tuned from."""
    assert not isinstance(recipe.teacher, str)
    shape = recipe_part(recipe.teacher)
    shape.pop("start", None)
    settings = {
        "teacher": {**shape, "training": result_settings(recipe.teacher.training)},
        "tokens": recipe_part(recipe.tokens),
    }
    sources = {"tokens": fingerprint_of(run.tokens)}
    if start is not None:
        sources["start"] = start.fingerprint
    return Inputs("teacher", settings, sources, SEED)


def train_teacher(context: StageContext, start: ModelRef | None, inputs: Inputs) -> None:
    """Train the teacher on the run's own tokens and commit it as `teacher/`.

    Args:
        start: The model that it is fine-tuned from; without one, weights are random.
        inputs: What it is made from.
    """
    recipe, run, ranks = context.recipe, context.run, context.ranks
    assert not isinstance(recipe.teacher, str)
    context.require(run.tokens, "prepare")
    context.verify(run.tokens)
    tokenizer = open_tokenizer(run.tokens)
    if start is None:
        model = _random_model(recipe, tokenizer)
    else:
        check_sequence_length(recipe.tokens, load_config(start.folder))
        _, model = load_model(start.folder)
        if recipe.student.vocabulary is not None:
            model = keep_tokens(model, read_kept(run.tokens))
    family = family_of(model.config)
    training = recipe.teacher.training
    checkpoints = Checkpoints(
        run.checkpoints("teacher"),
        inputs,
        training.checkpoint,
        context.reporter.say,
        ranks,
        overwrite=context.overwrite,
    )
    source = as_drawn(open_source(run.tokens, recipe.tokens, "train"), run.tokens)
    device = pick_device()
    step = planned_step(LANGUAGE_MODELING_ALONE, recipe.tokens, training, device)
    job = TrainingJob(
        "teacher",
        model,
        LanguageModelObjective(family, LANGUAGE_MODELING_ALONE),
        plan_batches(source, training, seed=SEED),
        training,
        checkpoints,
        context.metrics,
        device,
        measure_roofline(count_flops(step, model.config, None), device),
        ranks,
        section="teacher.training",
    )

    def commit(trained: PreTrainedModel, facts: dict[str, Any]) -> None:
        with commit_folder(run.teacher, inputs, facts, overwrite=context.overwrite) as folder:
            save_model(trained.cpu(), tokenizer, folder)

    train_and_commit(job, "the teacher", context.reporter, commit)


def _random_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    assert isinstance(recipe.teacher, TeacherRecipe)
    family = family_named(recipe.teacher.family)
    special = special_tokens(tokenizer, recipe.tokens.language_modeling)
    ids = {name: number for name, number in asdict(special).items() if isinstance(number, int)}
    config = family.new_config(
        recipe.teacher, num_ids(tokenizer), recipe.tokens.sequence_length, ids
    )
    torch.manual_seed(SEED)
    return getattr(transformers, family.model_class)(config)

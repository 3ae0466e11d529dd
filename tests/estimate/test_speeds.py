"""The speeds that estimates rest on, measured on the smallest models."""

import math
from dataclasses import replace

import pytest
import torch
from tests.task_models import SENTENCES, make_tokenizer
from tests.tiny_models import EVERY_FAMILY, make_config

from stillhouse.estimate.language import LanguagePlan, TextSize, language_parts
from stillhouse.estimate.speeds import MeasuredSpeeds
from stillhouse.estimate.tasks import TaskPlan, task_parts
from stillhouse.families.registry import family_named
from stillhouse.finetuning.data import TaskExamples
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.recipe import Recipe
from stillhouse.tasks.encoded import TextExample
from stillhouse.tasks.registry import make_task

pytestmark = pytest.mark.e2e  # each speed is timed for a tenth of a second


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_part_of_a_run_is_timed_for_a_model_of_any_family(family):
    """Cuts, trainings, the cache, the evaluation, a task, in seconds above zero; the generator of
    random numbers is left as it was, and a shape is measured once."""
    kind = family_named(family).language_modeling
    recipe = Recipe.model_validate(
        {
            "teacher": "sample",
            "corpus": {"source": "sample"},
            "tokens": {"language_modeling": kind, "sequence_length": 16},
            "distillation": {
                "tokens_per_step": 64,
                "control": "both",
                "epochs": 1,
                "teacher_outputs": {"cache": "sampled", "size": 8},
            },
        }
    )
    config = make_config(family, 3)
    text = TextSize(train_tokens=10_000, validation_tokens=500, document_tokens=100)
    cached = LanguagePlan(recipe, config, make_config(family, 2), text, None)
    distillation = recipe.distillation.model_copy(update={"teacher_outputs": "live"})
    live = replace(cached, recipe=recipe.model_copy(update={"distillation": distillation}))
    state, speeds = torch.get_rng_state(), MeasuredSpeeds()
    parts = [*language_parts(cached, speeds), *language_parts(live, speeds)]
    parts += task_parts(classification_plan(family), speeds)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(parts) == 6 + 5 + 3
    assert all(part.seconds is not None and 0 < part.seconds < math.inf for part in parts)
    assert language_parts(cached, speeds) == parts[:6]


def classification_plan(family: str) -> TaskPlan:
    """A model alone, and one that it teaches."""
    recipe = FinetuningRecipe.model_validate(
        {
            "task": {"kind": "classification", "labels": ["no", "yes"], "max_length": 32},
            "data": {"train": "train.tsv", "validation": "dev.tsv"},
            "models": {
                "teacher": {"start": "teacher"},
                "student": {"start": "teacher", "layer_map": 1, "teacher": "teacher"},
            },
            "training": {"examples_per_step": 8, "epochs": 1},
        }
    )
    tokenizer = make_tokenizer(family)
    size, positions = len(tokenizer), 64
    configs = {
        name: make_config(family, layers, vocabulary=size, positions=positions)
        for name, layers in (("teacher", 2), ("student", 1))
    }
    examples = [TextExample(text, target=n % 2) for n, text in enumerate(SENTENCES * 8)]
    found = TaskExamples(make_task(recipe.task), examples, {"validation": examples}, [])
    return TaskPlan("answers", recipe, configs, {}, found, tokenizer)

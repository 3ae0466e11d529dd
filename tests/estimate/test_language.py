"""The time of trainings, the teacher cache and the evaluation, at speeds that are given."""

from dataclasses import replace
from typing import Any

import pytest
from tests.fixed_speeds import FixedSpeeds
from tests.tiny_models import make_config

from stillhouse.estimate.language import (
    PROCESS_SECONDS,
    DataSetSize,
    LanguagePlan,
    Part,
    TextSize,
    language_parts,
    turns_seconds,
)
from stillhouse.recipe import Recipe
from stillhouse.training.cost import forward_flops

TEXT = TextSize(train_tokens=64_000, validation_tokens=3_200, document_tokens=16)


def make_recipe(**settings: Any) -> Recipe:
    """A causal student of one layer, by default live, for one epoch, without a control."""
    distillation = {"epochs": 1, "tokens_per_step": 320, "control": "none"}
    distillation |= settings.pop("distillation", {})
    values = {
        "teacher": "sample",
        "corpus": {"source": "sample"},
        "tokens": {"sequence_length": 16},
        "evaluation": {"speed": False},
        "distillation": distillation,
    }
    return Recipe.model_validate(values | settings)


def parts_of(recipe: Recipe, text: TextSize | str = TEXT) -> dict[str, Part]:
    """The parts by name."""
    teacher, student = make_config("gpt2", 2), make_config("gpt2", 1)
    plan = LanguagePlan(recipe, teacher, student, text, None)
    return {part.name: part for part in language_parts(plan, FixedSpeeds())}


def seconds_of(recipe: Recipe, text: TextSize | str = TEXT) -> dict[str, float]:
    parts = parts_of(recipe, text)
    found = {name: part.seconds for name, part in parts.items()}
    assert None not in found.values()
    return {name: value for name, value in found.items() if value is not None}


def test_twice_the_epochs_take_twice_the_time_and_steps():
    """200 steps of 320 tokens an epoch; the evaluation does not change."""
    once, twice = (parts_of(make_recipe(distillation={"epochs": n})) for n in (1, 2))
    assert [once["student"].num_steps, twice["student"].num_steps] == [200, 400]
    assert twice["student"].seconds == pytest.approx(2 * (once["student"].seconds or 0))
    assert twice["evaluation"] == once["evaluation"]


def test_the_student_takes_its_work_over_the_rate():
    """A training reads each token once, at a million FLOPs per second."""
    recipe = make_recipe()
    plan = LanguagePlan(recipe, make_config("gpt2", 2), make_config("gpt2", 1), TEXT, None)
    work = plan.distillation().cost().flops_per_token
    assert seconds_of(recipe)["student"] == pytest.approx(TEXT.train_tokens * work / 1e6)


def test_every_seed_trains_its_students_and_the_teacher_is_scored_once():
    """Two seeds: twice the student and its control, less than twice the evaluation."""
    settings = {"distillation": {"control": "same_tokens"}}
    one, two = (seconds_of(make_recipe(seed=seeds, **settings)) for seeds in ([0], [0, 1]))
    for name in ("student", "control"):
        assert two[name] == pytest.approx(2 * one[name])
    assert one["evaluation"] < two["evaluation"] < 2 * one["evaluation"]


def test_a_cache_is_a_part_and_leaves_the_students_steps():
    """The teacher reads the whole training split once, also for a student that reads less of it;
    a control of the same time waits for the cache as well."""
    settings = {
        "max_tokens": 3_200,
        "control": "both",
        "losses": {"soft_target": {"weight": 1}, "language_modeling": {"weight": 1}},
    }
    live = seconds_of(make_recipe(distillation=settings))
    cached_recipe = make_recipe(
        distillation={**settings, "teacher_outputs": {"cache": "top_k", "size": 8}}
    )
    cached = seconds_of(cached_recipe)
    plan = LanguagePlan(cached_recipe, make_config("gpt2", 2), make_config("gpt2", 1), TEXT, None)
    per_token = forward_flops(plan.distillation().step(), plan.teacher)
    assert "teacher cache" not in live
    assert cached["teacher cache"] == pytest.approx(TEXT.train_tokens * per_token / 1e6)
    assert cached["student"] < live["student"]
    assert cached["control_same_time"] == cached["student"] + cached["teacher cache"]
    assert live["control_same_time"] == live["student"]


def test_a_teacher_that_is_trained_here_has_its_time():
    """Once for all seeds."""
    description = {"family": "gpt2", "num_layers": 2, "hidden_size": 16, "num_heads": 2}
    settings: dict[str, Any] = {
        "seed": [0, 1],
        "tokens": {"sequence_length": 16, "tokenizer": "folder"},
    }
    trained, longer = (
        seconds_of(
            make_recipe(teacher={**description, "training": {"max_tokens": number}}, **settings)
        )
        for number in (262_144, 524_288)
    )
    assert longer["teacher"] == pytest.approx(2 * trained["teacher"])
    assert longer["student"] == trained["student"]


def test_the_scores_of_layers_have_their_time():
    """Block influence is one pass over the text of the scores; greedily for each layer and drop
    half of one, and a share of the head; named layers are not scored."""

    def seconds(**student: Any) -> float:
        recipe = make_recipe(student={**student, "importance": {"tokens": 100_000}})
        teacher, student_config = make_config("gpt2", 8), make_config("gpt2", 6)
        plan = LanguagePlan(recipe, teacher, student_config, TEXT, None)
        parts = {part.name: part for part in language_parts(plan, FixedSpeeds())}
        return parts["init"].seconds or 0.0 if "init" in parts else 0.0

    assert seconds(layer_map=[0, 1, 2, 3, 4, 5]) == 0
    influence = seconds(layer_map=6)
    assert influence > 0
    assert seconds(layer_map=6, feed_forward_size=8) == 2 * influence
    greedy = seconds(layer_map={"layers": 6, "by": "greedy"})
    fitted = seconds(layer_map=[0, 1, 2, 3, 4, 5], reconstruct=True)
    # One pass of the teacher, and three of the student's 6 of 8 layers.
    assert fitted == pytest.approx((1 + 3 * 6 / 8) * influence, rel=0.02)
    halves = (8 + 7) / 2  # of the two drops
    assert halves * influence < greedy < 3 * halves * influence


def test_what_is_not_known_of_the_text_is_said():
    """A number of tokens in the recipe is enough for trainings, not for the rest."""
    parts = parts_of(make_recipe(), "the text is not there yet")
    assert parts.pop("init").seconds is not None  # of a number of tokens in the recipe
    assert {(part.seconds, part.reason) for part in parts.values()} == {
        (None, "the text is not there yet")
    }
    parts = parts_of(make_recipe(distillation={"max_tokens": 3_200}), "the text is not there yet")
    assert parts["student"].num_steps == 10
    assert parts["student"].seconds is not None
    assert parts["evaluation"].seconds is None


def test_long_documents_are_scored_in_windows_that_overlap():
    """Documents of one context are read twice; much longer ones about three times."""
    short = seconds_of(make_recipe(), replace(TEXT, document_tokens=15))["evaluation"]
    long = seconds_of(make_recipe(), replace(TEXT, document_tokens=10_000))["evaluation"]
    assert short < long < 1.5 * short


def test_speed_is_measured_in_turns_and_fresh_processes():
    """Two processes, and turns between the fewest and the most that there may be."""
    without = seconds_of(make_recipe())["evaluation"]
    timed = seconds_of(make_recipe(evaluation={"speed": True}))["evaluation"]
    assert timed > without + 2 * PROCESS_SECONDS
    assert 6 * 0.1 < turns_seconds(0.1) < 16 * 0.1
    assert 6 * 60 < turns_seconds(60) < 6 * 60 + 20 + 60


def test_a_masked_model_is_scored_once_over_the_text():
    """No windows, no generation."""
    masked = make_recipe(
        tokens={"sequence_length": 16, "language_modeling": "masked"},
        distillation={"max_tokens": 320},
    )
    plan = LanguagePlan(masked, make_config("bert", 2), make_config("bert", 1), TEXT, None)
    evaluation = language_parts(plan, FixedSpeeds())[-1]
    doubled = replace(plan, text=replace(TEXT, document_tokens=10_000))
    assert language_parts(doubled, FixedSpeeds())[-1].seconds == evaluation.seconds


def test_zero_shot_data_sets_take_the_time_of_their_tokens():
    plan = LanguagePlan(make_recipe(), make_config("gpt2", 2), make_config("gpt2", 1), TEXT, None)
    without, once, twice, generated = (
        language_parts(replace(plan, data_sets=sets), FixedSpeeds())[-1].seconds or 0
        for sets in (
            {},
            {"a": DataSetSize(1_000)},
            {"a": DataSetSize(1_000), "b": DataSetSize(1_000)},
            {"a": DataSetSize(1_000, 800)},
        )
    )
    assert once > without
    assert twice - without == pytest.approx(2 * (once - without))
    assert generated > once

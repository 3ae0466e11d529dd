"""The time of a task's trainings and scores, at speeds that are given."""

from typing import Any

import pytest
from tests.fixed_speeds import FixedSpeeds
from tests.task_models import SENTENCES, make_tokenizer
from tests.tiny_models import make_config

from stillhouse.estimate.language import Part
from stillhouse.estimate.tasks import TaskPlan, task_parts
from stillhouse.finetuning.data import TaskExamples
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.tasks.encoded import TextExample
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.squad import Answer, Question

ALONE = {"alone": {"start": "teacher"}}
TAUGHT = {"taught": {"start": "teacher", "teacher": "folder"}}


class FreeEncoding(TaskPlan):
    """A plan without the time of its tokenizer, which is measured."""

    def _sample(self, every: Any) -> Any:
        from dataclasses import replace

        return replace(super()._sample(every), encoding_seconds=0.0)


def parts_of(
    *, number: int = 320, models: dict[str, Any] = ALONE, unlabeled: int = 0, seeds: int = 1,
    **settings: Any,
) -> dict[str, Part]:  # fmt: skip
    """The parts of a classification of one sentence, said again and again."""
    recipe = FinetuningRecipe.model_validate(
        {
            "task": {"kind": "classification", "labels": ["no", "yes"], "max_length": 48},
            "data": {"train": "train.tsv", "validation": "dev.tsv"},
            "models": models,
            "training": {"examples_per_step": 32, "epochs": 1} | settings,
        }
    )
    config = make_config("bert", vocabulary=100, positions=64)
    example = TextExample(SENTENCES[0], target=1)
    plan = FreeEncoding(
        "answers",
        recipe,
        dict.fromkeys(models, config),
        {"folder": config},
        TaskExamples(
            make_task(recipe.task), [example] * number, {"validation": [example] * 64},
            [example] * unlabeled,
        ),
        make_tokenizer("bert"),
        seeds,
    )  # fmt: skip
    return {part.name: part for part in task_parts(plan, FixedSpeeds())}


def seconds_of(name: str, **settings: Any) -> float:
    seconds = parts_of(**settings)[f"answers: {name}"].seconds
    assert seconds is not None
    return seconds


def test_twice_the_epochs_take_twice_the_time():
    """Ten steps of 32 of 320 examples an epoch."""
    once, twice = seconds_of("alone", epochs=1), seconds_of("alone", epochs=2)
    assert twice == pytest.approx(2 * once)
    assert parts_of(epochs=2)["answers: alone"].num_steps == 20


def test_twice_the_examples_and_twice_the_seeds_take_twice_the_time():
    once = seconds_of("alone")
    assert seconds_of("alone", number=640) == pytest.approx(2 * once)
    assert seconds_of("alone", seeds=2) == pytest.approx(2 * once)


def test_each_model_is_a_part_and_a_teacher_adds_its_forward_pass():
    """A teacher of the student's shape: four passes instead of three."""
    alone, taught = seconds_of("alone"), seconds_of("taught", models=TAUGHT)
    assert taught == pytest.approx(4 / 3 * alone)
    parts = parts_of(models={"one": {"start": "teacher"}, "two": {"start": "teacher"}})
    assert parts["answers: one"].seconds == parts["answers: two"].seconds == pytest.approx(alone)


def test_two_models_are_scored_in_twice_the_time():
    """And a teacher from elsewhere is scored beside the models that it teaches."""
    turns = seconds_of("scores", number=32)
    both = seconds_of("scores", models={"one": {"start": "teacher"}, "two": {"start": "teacher"}})
    assert turns < both


def test_unlabeled_examples_are_read_by_what_has_a_teacher():
    taught = seconds_of("taught", models=TAUGHT)
    assert seconds_of("taught", models=TAUGHT, unlabeled=320) == pytest.approx(2 * taught)


def test_states_that_are_compared_are_scored():
    """Five states, each scored on the split that is named."""
    plain = seconds_of("alone")
    one, five = (seconds_of("alone", select="validation", evaluations=n) for n in (1, 5))
    assert five - plain == pytest.approx(5 * (one - plain))
    assert one > plain


def test_windows_of_long_contexts_are_trained_on_one_by_one():
    """A context of several windows takes a step's place for each of them."""
    recipe = FinetuningRecipe.model_validate(
        {
            "task": {
                "kind": "question_answering",
                "max_length": 32,
                "doc_stride": 4,
                "max_question_length": 8,
            },
            "data": {"train": "train.json", "validation": "dev.json"},
            "models": ALONE,
            "training": {"examples_per_step": 32, "epochs": 1},
        }
    )
    config = make_config("bert", vocabulary=100, positions=64)

    def steps(context: str) -> int:
        questions = [Question("q", "Who?", context, (Answer(context[:3], 0),), False)] * 64
        examples = TaskExamples(make_task(recipe.task), questions, {"validation": questions}, [])
        plan = TaskPlan("answers", recipe, {"alone": config}, {}, examples, make_tokenizer("bert"))
        found = task_parts(plan, FixedSpeeds())[0].num_steps
        assert found is not None
        return found

    assert steps("The sea") == 2
    assert steps(" ".join(SENTENCES)) > 4

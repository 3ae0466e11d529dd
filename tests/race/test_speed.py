"""A budget of decoding speed: candidates by the times of their shapes, and what cannot be."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict

import pytest
import torch
from tests.tiny_models import make_config
from transformers import BertConfig, PretrainedConfig

from stillhouse.errors import RecipeError, RunError
from stillhouse.inference.reference import greedy_tokens
from stillhouse.models.vocabulary import with_vocabulary_size
from stillhouse.race import speed
from stillhouse.race.candidates import SPEED_TOLERANCE, plan_candidates
from stillhouse.race.speed import DecodingTimes, decoder, decoding_times, times_inputs
from stillhouse.runs.manifest import commit_json
from stillhouse.stages.context import ModelRef
from stillhouse.student.axes import sizes_of
from stillhouse.student.settings import BudgetRecipe, StudentRecipe

TEACHER = make_config("llama", num_layers=24)


def seconds_of(config: PretrainedConfig) -> float:
    """A millisecond for the head, and for each layer 100 us and 2 us for each channel."""
    layers = config.num_hidden_layers
    return 1e-3 + layers * (1e-4 + 2e-6 * sizes_of(config).feed_forward)


class FixedTimes(DecodingTimes):
    """Times by a formula, whatever this machine does."""

    def of(self, configs: Sequence[PretrainedConfig]) -> list[float]:
        return [seconds_of(config) for config in configs]


def candidates(tokens_per_second: float):
    student = StudentRecipe(budget=BudgetRecipe(tokens_per_second=tokens_per_second))
    return plan_candidates(TEACHER, student, times=FixedTimes("fp32", "as requested"))


def test_candidates_have_the_speed():
    """At least that of the budget, at most 5 % more, in shapes that all differ."""
    wanted = 1.3 / seconds_of(TEACHER)
    found = candidates(wanted)
    assert len({candidate.name for candidate in found}) == len(found) > 1
    for candidate in found:
        reached = 1 / seconds_of(candidate.plan.config)
        assert wanted * 0.999 <= reached <= wanted / (1 - SPEED_TOLERANCE) * 1.001


@pytest.mark.parametrize(
    ("tokens_per_second", "message"),
    [
        (1e6, "one narrow layer decodes 8"),
        (1.0, r"the teacher decodes [\d.]+ already \(measured now in fp32, one sequence\)"),
    ],
)
def test_a_speed_that_cannot_be_met_is_refused_with_those_that_can(tokens_per_second, message):
    with pytest.raises(
        RecipeError, match=rf"asks for .* tokens/s, but {message}.* Give "
    ) as refused:
        candidates(tokens_per_second)
    low, high = re.findall(r"[\d.]+\d", str(refused.value).partition("Give")[2])
    assert float(low) == pytest.approx(1 / seconds_of(TEACHER), abs=0.1)
    (fastest, *_) = candidates(float(high))
    assert fastest.shape["layers"] == 1


def test_a_decoder_writes_as_transformers_does(tiny_model, monkeypatch):
    """Greedily, one token a step from one, each time the same number; its slot is free again."""
    model, seen = tiny_model("llama"), []
    monkeypatch.setattr(speed, "NEW_TOKENS", 9)
    decode = decoder(model)
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, given: seen.extend(given[0].flatten().tolist())
    )
    assert (decode(), decode()) == (9, 9)
    hook.remove()
    assert seen[:9] == seen[9:] == [0, *greedy_tokens(model, [0], 8)]


def test_times_are_measured_once_and_kept(tmp_path):
    """In a process, and with a run, for the teacher and the vocabulary that they were measured
    with; a damaged file is refused."""
    teacher = make_config("llama")
    times = decoding_times(teacher, None, None)
    (seconds,) = times.of([teacher])
    assert seconds > 0
    assert decoding_times(make_config("llama"), None, tmp_path / "none.json").of([teacher]) == [
        seconds
    ]
    saved = tmp_path / "times.json"
    own = ModelRef(tmp_path / "teacher", "1")
    marked = DecodingTimes("int8", "as requested", dict.fromkeys(times.seconds, 7.0))
    commit_json(saved, asdict(marked), times_inputs(own))
    assert decoding_times(teacher, own, saved).of([teacher]) == [7.0]
    assert decoding_times(teacher, None, saved).of([teacher]) == [seconds]
    larger = with_vocabulary_size(teacher, 2 * teacher.vocab_size)
    assert decoding_times(larger, own, saved).of([larger]) != [7.0]
    saved.write_text(json.dumps({"precision": "fp32"}))
    with pytest.raises(RunError, match=r"times\.json is damaged"):
        decoding_times(teacher, own, saved)


def test_a_model_that_generates_nothing_has_no_decoding_speed():
    with pytest.raises(RecipeError, match=r"budget\.tokens_per_second .* a bert model fills masks"):
        decoding_times(BertConfig(), None, None)


def test_models_are_timed_in_the_precision_that_is_chosen(tiny_model):
    """That of the weights that are read."""
    model = DecodingTimes("bf16", "as requested").converted(tiny_model("llama"))
    assert model.dtype == torch.bfloat16

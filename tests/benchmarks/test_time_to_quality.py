"""Time to quality: the same loss by both steps, what counts as reached, and resuming."""

import argparse
from dataclasses import replace

import pytest
from benchmarks.time_to_quality import Bench, Result, Training, run, table, verdicts

from benchmarks import time_to_quality

RECIPE = """
teacher: sample
corpus: {{source: {text}, documents: per_line, validation_fraction: 0.2}}
tokens: {{language_modeling: causal, sequence_length: 32, attend_across_documents: true}}
student: {{layer_map: 1}}
distillation: {{tokens_per_step: 128, max_tokens: 384, precision: fp32}}
"""
REPLACEMENT_CHARACTER = ["distillation.preset=classic", "distillation.optimizer.learning_rate=1e-3"]


def training(kind: str, seconds: float, loss: float, *, seed: int = 0) -> Training:
    return Training(kind, seed, 1e-3, 100, seconds, loss)


@pytest.fixture
def options(tmp_path) -> argparse.Namespace:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The {n}th house has {n * n} windows.\n" for n in range(120)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(text=text))
    return argparse.Namespace(recipe=str(recipe), run_dir=tmp_path / "run", validation_tokens=64)


@pytest.mark.e2e
def test_both_steps_come_to_the_same_loss_and_a_run_goes_on(options, monkeypatch):
    """The engine's gain is one of time alone; what is done is not done again."""
    monkeypatch.setattr(time_to_quality, "LEARNING_RATES", (1e-3,))
    found = run(Bench(options), {"half": REPLACEMENT_CHARACTER}, shares=[0.5], seeds=[0])
    assert [t.kind for t in found.trainings] == ["classic", "2019", "half"]
    classic, reference, half = found.trainings
    assert classic.tokens == reference.tokens == 384
    assert half.tokens == 192
    assert classic.loss == pytest.approx(reference.loss, abs=0.02)  # 2019 skips a label in 32
    assert reference.loss < found.initial_loss
    assert run(Bench(options), {"half": REPLACEMENT_CHARACTER}, shares=[0.5], seeds=[0]) == found


def test_what_is_reached_soonest_is_the_shortest_training_as_good_as_2019():
    """A shorter one that is worse does not count, nor does another candidate's or seed's."""
    result = Result(
        3.0,
        9.0,
        [
            training("2019", 100, 5.0),
            training("classic", 40, 5.0),
            training("fast", 5, 5.1),
            training("fast", 10, 4.9),
            training("fast", 20, 4.5),
            training("other", 1, 4.0),
            training("fast", 2, 4.0, seed=1),
        ],
    )
    assert result.gain("fast", 0) == 10
    assert verdicts(result, ["fast"], [0])[1] == (
        "fast: speedup to 2019's loss 10.00 (engine 2.50, recipe 4.00); by seed 10.00"
    )


def test_a_candidate_that_never_gets_there_is_said_to():
    """No figure is given where a seed has none."""
    result = Result(
        3.0, 9.0, [training("2019", 100, 5.0), training("classic", 40, 5.0), training("a", 5, 5.1)]
    )
    assert result.gain("a", 0) is None
    assert verdicts(result, ["a"], [0])[1] == "a: reaches 2019's loss on 0 of 1 seeds"
    assert table(result).row_count == 3


def test_the_engine_is_timed_at_the_rate_of_2019():
    """Other learning rates were tried too; their seconds are not the engine's."""
    reference = training("2019", 100, 5.0)
    others = [replace(training("classic", 99, 6.0), learning_rate=5e-4)]
    result = Result(3.0, 9.0, [*others, reference, training("classic", 25, 5.0)])
    assert result.engine(0) == 4

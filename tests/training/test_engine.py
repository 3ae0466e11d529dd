"""The training loop: the same result however a step is split, and no step hidden or harmful."""

import json
import math
import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.jobs import (
    LENGTH,
    LOSSES,
    ROOFLINE,
    Failing,
    Poison,
    Silent,
    make_job,
    make_model,
    make_source,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stillhouse.distillation.distill import freeze
from stillhouse.errors import DataError, ResourceError, Stopped, TrainingError
from stillhouse.families.registry import family_of
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.tokens.mixture import MixedSequences
from stillhouse.tokens.packing import CausalSequences
from stillhouse.training.engine import train
from stillhouse.training.job import TrainingJob, plan_batches
from stillhouse.training.ranks import StopRequest
from stillhouse.training.settings import PretrainingRecipe


class HalfLabeled:
    """The same sequences with every second label taken away, so that the kinds of rows differ."""

    def __init__(self) -> None:
        self.whole = make_source()
        self.num_sequences, self.sequence_length = self.whole.num_sequences, LENGTH
        self.parts = self.whole.parts

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        batch = self.whole.batch(sequences, epochs, seed)
        labels = batch.labels.clone()
        labels[:, ::2] = IGNORED
        return replace(batch, labels=labels)


class Impatient(Silent):
    """Asks to stop after a step."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def step(self, step: int, values: dict[str, Any]) -> None:
        if step == self.last:
            os.kill(os.getpid(), signal.SIGTERM)


def lines(job: TrainingJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.metrics.path.read_text().splitlines()]


@pytest.mark.parametrize("sequences", [1, 2, 4])
@pytest.mark.law("accumulation")
def test_micro_batches_do_not_change_the_result(tmp_path, sequences):
    """However a step is split, losses and weights agree to 1e-5 in float32."""
    whole = make_job(tmp_path / "whole", micro_batch_tokens=6 * LENGTH)
    split = make_job(tmp_path / "split", micro_batch_tokens=sequences * LENGTH)
    for job in (whole, split):
        train(job, Silent())
    for one, other in zip(lines(whole), lines(split), strict=True):
        for name in ("loss", *LOSSES, "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5)
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(
            parameter, split.model.get_parameter(name), atol=1e-5, rtol=0, msg=name
        )


@pytest.mark.law("accumulation")
def test_a_term_is_the_mean_over_its_own_rows_of_the_whole_step(tmp_path):
    """Each logged term is the objective's sum over the global batch divided by its rows once."""
    losses = {
        "soft_target": {"weight": 5.0, "rows": "all"},
        "language_modeling": {"weight": 2.0},
        "hidden_mse": {"weight": 0.5, "rows": "predicted"},
    }
    job = make_job(tmp_path, losses=losses, source=HalfLabeled(), micro_batch_tokens=LENGTH)
    batch = job.batches.step(0)
    with torch.no_grad():
        _, sums = job.objective(job.model.train(), batch, dict.fromkeys(losses, 1.0))
    train(job, Silent())
    first = lines(job)[0]
    num_all, num_predicted = batch.num_rows("all"), batch.num_rows("predicted")
    assert num_all == 2 * num_predicted
    means = {
        "soft_target": float(sums["soft_target"]) / num_all,
        "language_modeling": float(sums["language_modeling"]) / num_predicted,
        "hidden_mse": float(sums["hidden_mse"]) / num_predicted,
    }
    for name, mean in means.items():
        assert first[name] == pytest.approx(mean, rel=1e-5), name
    total = 5 * means["soft_target"] + 2 * means["language_modeling"] + 0.5 * means["hidden_mse"]
    assert first["loss"] == pytest.approx(total, rel=1e-5)


def test_the_learning_rate_follows_the_schedule(tmp_path):
    """Five steps with one of warm-up: the full rate twice, then down by quarters."""
    schedule = {"name": "linear", "warmup_fraction": 0.2}
    settings = {"max_tokens": 30 * LENGTH, "optimizer": {"learning_rate": 0.01}}
    job = make_job(tmp_path, schedule=schedule, **settings)
    train(job, Silent())
    rates = [line["learning_rate"] for line in lines(job)]
    assert rates == pytest.approx([0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_the_gradient_is_clipped_to_its_largest_norm(tmp_path):
    """The logged norm is that before clipping; the update follows the clipped gradient."""
    job = make_job(tmp_path, max_tokens=6 * LENGTH, optimizer={"max_grad_norm": 0.01})
    parameters = list(job.model.parameters())
    seen: list[torch.Tensor] = []

    def watch(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.extend(p.grad.detach().clone() for p in parameters if p.grad is not None)

    handle = register_optimizer_step_pre_hook(watch)
    try:
        train(job, Silent())
    finally:
        handle.remove()
    gradients = [float(gradient.norm()) for gradient in seen]
    assert math.hypot(*gradients) == pytest.approx(0.01, rel=1e-3)
    assert lines(job)[0]["grad_norm"] > 0.1


def test_a_line_of_metrics_holds_what_a_reader_needs(tmp_path):
    """One line a step: loss, every term, gradient norm, learning rate, speed; each in its turn."""
    job = make_job(tmp_path, max_tokens=6 * 51 * LENGTH)
    progress = train(job, Silent())
    found = lines(job)
    assert [line["step"] for line in found] == list(range(1, 52))
    for line in found:
        expected = {"loss", *LOSSES, "grad_norm", "learning_rate", "tokens_per_second"}
        assert set(line) >= {*expected, "tokens", "seconds", "skipped_steps"}
    with_norms = [line["step"] for line in found if "grad_norm/soft_target" in line]
    assert with_norms == [1, 51]
    assert {key for key in found[0] if key.startswith("grad_norm/")} == {
        f"grad_norm/{name}" for name in LOSSES
    }
    assert (
        found[-1]["tokens"]
        == progress.tokens
        == sum(job.batches.step(step).num_rows("all") for step in range(51))
    )


def test_every_step_logs_its_mfu(tmp_path):
    """The roofline is logged once; each step has its MFU, and the manifest that of all steps."""
    job, reporter = make_job(tmp_path), Silent()
    progress = train(job, reporter)
    assert [line for line in reporter.said if "roofline 1,000 tokens/s" in line] == [
        f"student (seed 3): {ROOFLINE}"
    ]
    for line in lines(job):
        assert line["mfu"] == pytest.approx(line["tokens_per_second"] / 1000)
    facts = job.facts(progress)
    assert facts["mfu"] == pytest.approx(progress.tokens / progress.seconds / 1000)
    assert facts["tokens"] == progress.tokens


def test_the_norm_of_a_term_is_that_of_its_own_gradient(tmp_path):
    """With the whole step in one micro-batch: the gradient of weight * term alone."""
    job = make_job(tmp_path, max_tokens=6 * LENGTH, micro_batch_tokens=6 * LENGTH)
    batch = job.batches.step(0)
    parameters = list(job.model.parameters())
    expected = {}
    for name, recipe in LOSSES.items():
        rows = batch.num_rows("predicted" if name == "language_modeling" else "all")
        loss, _ = job.objective(job.model, batch, {name: recipe["weight"] / rows})
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        expected[name] = math.hypot(*(float(g.norm()) for g in gradients if g is not None))
    train(job, Silent())
    for name, norm in expected.items():
        assert lines(job)[0][f"grad_norm/{name}"] == pytest.approx(norm, rel=1e-4), name


def test_steps_that_are_not_finite_are_skipped_counted_and_shown(tmp_path):
    """The weights stay as they were, the count rises, the metrics show null, training continues."""
    losses = {"soft_target": {"weight": 1.0}}
    poisoned = make_job(tmp_path / "poisoned", losses=losses, micro_batch_tokens=6 * LENGTH)
    Poison(poisoned.model, {2, 3})
    progress = train(poisoned, Silent())
    assert (progress.step, progress.skipped_steps) == (4, 2)
    found = lines(poisoned)
    assert [line["grad_norm"] is None for line in found] == [False, True, True, False]
    assert [line["skipped_steps"] for line in found] == [0, 1, 2, 2]
    assert all(torch.isfinite(parameter).all() for parameter in poisoned.model.parameters())


def test_a_skipped_step_leaves_every_weight_as_it_was(tmp_path):
    """A step with an infinite gradient changes nothing at all."""
    job = make_job(tmp_path, losses={"soft_target": {"weight": 1.0}}, max_tokens=6 * LENGTH)
    before = [parameter.detach().clone() for parameter in job.model.parameters()]
    Poison(job.model, {1})
    train(job, Silent())
    for old, new in zip(before, job.model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_five_bad_steps_in_a_row_end_the_training(tmp_path):
    """A weight that is infinite makes every loss NaN; the error says so, with exit code 8."""
    model = make_model(1, seed=1)
    with torch.no_grad():
        model.get_parameter("transformer.h.0.mlp.c_fc.bias")[0] = math.inf
    job = make_job(tmp_path, model=model, max_tokens=6 * 20 * LENGTH)
    with pytest.raises(TrainingError, match="5 steps in a row were skipped") as error:
        train(job, Silent())
    assert error.value.exit_code == 8
    assert "soft_target" in str(error.value)
    assert "at step 5" in str(error.value)
    assert [line["loss"] for line in lines(job)] == [None] * len(lines(job))
    assert lines(job)[-1]["skipped_steps"] >= 4


@pytest.mark.parametrize("learning_rate", [1.0, 50.0, 1e30])
@pytest.mark.parametrize("num_steps", [4, 40])
def test_a_learning_rate_that_is_far_too_high_is_named(tmp_path, learning_rate, num_steps):
    """Training ends with exit code 8 and the setting to lower, soon or at its end."""
    job = make_job(
        tmp_path,
        losses={"language_modeling": {"weight": 1.0}},
        max_tokens=6 * num_steps * LENGTH,
        optimizer={"learning_rate": learning_rate},
    )
    with pytest.raises(
        TrainingError, match=r"student \(seed 3\): training diverged at step"
    ) as error:
        train(job, Silent())
    assert error.value.exit_code == 8
    assert str(error.value).startswith("student (seed 3): ")
    assert f"distillation.optimizer.learning_rate (now {learning_rate:g})" in str(error.value)


@pytest.mark.e2e
@pytest.mark.parametrize("learning_rate", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 30])
def test_ordinary_training_does_not_diverge(tmp_path, learning_rate, num_steps):
    """From random weights, of any length, at learning rates that people use."""
    job = make_job(
        tmp_path,
        max_tokens=6 * num_steps * LENGTH,
        optimizer={"learning_rate": learning_rate},
        schedule={"warmup_fraction": 0.5},
    )
    assert train(job, Silent()).step == num_steps


def test_four_bad_steps_in_a_row_do_not(tmp_path):
    """The count begins again with every good step."""
    job = make_job(
        tmp_path, losses={"soft_target": {"weight": 1.0}}, max_tokens=6 * 10 * LENGTH,
        micro_batch_tokens=6 * LENGTH,
    )  # fmt: skip
    Poison(job.model, {1, 2, 3, 4, 6, 7, 8, 9})
    assert train(job, Silent()).skipped_steps == 8


@pytest.mark.parametrize("last", [2, 4])
def test_a_signal_stops_after_a_whole_step_even_the_last(tmp_path, last):
    """The step is committed and logged; resumed, training ends as if nothing had happened."""
    uninterrupted = make_job(tmp_path / "uninterrupted")
    train(uninterrupted, Silent())

    with (
        StopRequest() as stop,
        pytest.raises(
            Stopped, match=f"Step {last} of 4 of student \\(seed 3\\) is committed"
        ) as stopped,
    ):
        train(make_job(tmp_path / "stopped"), Impatient(last), stop)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    resumed = make_job(tmp_path / "stopped")
    assert train(resumed, Silent()).step == 4
    assert [line["loss"] for line in lines(resumed)] == [
        line["loss"] for line in lines(uninterrupted)
    ]
    for name, parameter in uninterrupted.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name


def test_a_stop_that_was_asked_for_during_the_set_up_is_heeded(tmp_path):
    """Nothing is trained, nothing is lost."""
    stop = StopRequest()
    stop.signal_number = signal.SIGINT
    job = make_job(tmp_path)
    with pytest.raises(Stopped, match="Step 0 of 4") as stopped:
        train(job, Silent(), stop)
    assert stopped.value.exit_code == 130
    assert not lines(job)
    assert not job.checkpoints.committed()


def test_frozen_embeddings_stay_as_they_are(tmp_path):
    """Position embeddings that are frozen keep every bit; the rest learns."""
    model = make_model(1, seed=1)
    freeze(model, family_of(model.config), ["position_embeddings"])
    positions = model.transformer.wpe.weight.detach().clone()
    words = model.transformer.wte.weight.detach().clone()
    train(make_job(tmp_path, model=model), Silent())
    assert torch.equal(model.transformer.wpe.weight, positions)
    assert not torch.equal(model.transformer.wte.weight, words)


def test_the_student_learns(tmp_path):
    """Twenty steps bring the student closer to its teacher."""
    settings = {"max_tokens": 6 * 20 * LENGTH, "optimizer": {"learning_rate": 0.01}}
    job = make_job(tmp_path, losses={"soft_target": {"weight": 1.0}}, **settings)
    train(job, Silent())
    found = [line["loss"] for line in lines(job)]
    assert sum(found[-4:]) < 0.8 * sum(found[:4])


@pytest.mark.parametrize(
    ("settings", "num_steps", "expected"),
    [
        ({"epochs": 3}, None, 10),  # 19 sequences, three times, in steps of six
        ({"epochs": 3, "max_tokens": 7 * LENGTH}, None, 2),
        ({"epochs": 3}, 4, 4),
    ],
)
def test_the_number_of_steps(settings, num_steps, expected):
    """Epochs, a number of tokens, or a number of steps; the last step may be short."""
    recipe = PretrainingRecipe.model_validate({"tokens_per_step": 6 * LENGTH, **settings})
    batches = plan_batches(make_source(), recipe, seed=0, num_steps=num_steps)
    assert batches.num_steps == expected


def test_less_text_than_one_step_is_refused():
    """A step is never filled up in silence by reading the same text twice."""
    recipe = PretrainingRecipe(tokens_per_step=20 * LENGTH)
    with pytest.raises(DataError, match="gives 19 sequences of 16 tokens, fewer than the 20"):
        plan_batches(make_source(), recipe, seed=0)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("call", [1, 6])
def test_memory_that_is_refused_halves_the_micro_batch(tmp_path, call, error):
    """At the very first pass, which measures each term's norm, and at a later one: the step is
    done again in smaller parts, said once, and the result is the same."""
    settings: dict[str, Any] = {"micro_batch_tokens": 4 * LENGTH}
    expected, job = (make_job(tmp_path / name, **settings) for name in ("whole", "refused"))
    train(expected, Silent())
    reporter = Silent()
    refused = replace(job, objective=Failing(job.objective, call, error))
    progress = train(refused, reporter)
    assert progress.micro_batch_sequences == 2
    assert progress.skipped_steps == 0
    said = "out of memory in a micro-batch of 3 sequences; continuing with 2, in steps of as many"
    assert sum(said in line for line in reporter.said) == 1
    for one, other in zip(lines(expected), lines(job), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["tokens"] == one["tokens"]


def test_after_a_resume_micro_batches_stay_small(tmp_path):
    """Memory that was refused once is not asked for again at every start."""
    job = make_job(tmp_path, micro_batch_tokens=4 * LENGTH, checkpoint={"every_steps": 1})
    error = MemoryError()
    progress = train(replace(job, objective=Failing(job.objective, 1, error)), Silent())
    again = make_job(tmp_path, micro_batch_tokens=4 * LENGTH, checkpoint={"every_steps": 1})
    assert train(again, Silent()).micro_batch_sequences == progress.micro_batch_sequences == 2


def test_a_single_sequence_too_many_is_one_clear_error(tmp_path):
    """Nothing is left to halve; the exit code is 6."""
    job = make_job(tmp_path, micro_batch_tokens=LENGTH)
    with pytest.raises(ResourceError, match="micro-batch of 1 sequences of 16 tokens"):
        train(replace(job, objective=Failing(job.objective, 1, MemoryError())), Silent())


def test_a_spike_is_skipped_and_said(tmp_path):
    """A gradient a thousand times as large as usual changes nothing; the next step counts."""
    losses = {"soft_target": {"weight": 1.0}}
    settings: dict[str, Any] = {"micro_batch_tokens": 6 * LENGTH, "max_tokens": 6 * 20 * LENGTH}
    job, reporter = make_job(tmp_path, losses=losses, **settings), Silent()
    Poison(job.model, {18}, factor=1e6)
    progress = train(job, reporter)
    assert (progress.step, progress.skipped_steps) == (20, 1)
    assert [line for line in reporter.said if "step 18 is skipped: the gradient's norm is" in line]
    assert max(progress.recent_norms) < 1e3


def test_few_steps_are_too_few_to_call_a_gradient_a_spike(tmp_path):
    """The first steps of a training may differ as they like."""
    settings: dict[str, Any] = {"micro_batch_tokens": 6 * LENGTH, "max_tokens": 6 * 10 * LENGTH}
    job = make_job(tmp_path, losses={"soft_target": {"weight": 1.0}}, **settings)
    Poison(job.model, {8}, factor=1e6)
    assert train(job, Silent()).skipped_steps == 0


@pytest.mark.parametrize("dropout", [True, False])
def test_activations_may_be_computed_twice(tmp_path, dropout):
    """Activation checkpointing runs each layer twice a pass, and changes no bit; without dropout
    too, where models are not in training mode."""
    settings: dict[str, Any] = {"micro_batch_tokens": 6 * LENGTH, "dropout": dropout}
    one = make_job(tmp_path / "one", **settings)
    two = make_job(tmp_path / "two", **settings, activation_checkpointing=True)
    jobs, passes = (one, two), []
    for job in jobs:
        counted: list[int] = []
        norm = job.model.get_submodule("transformer.h.0.ln_1")
        norm.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        train(job, Silent())
        passes.append(len(counted))
    once, twice = (number - 1 for number in passes)  # the last loss is computed without gradients
    assert twice == 2 * once
    for one, other in zip(*(job.model.parameters() for job in jobs), strict=True):
        assert torch.equal(one, other)


def test_an_error_that_only_speaks_of_memory_is_not_one_of_memory(tmp_path):
    """A bug on the device must not be explained away."""
    job = make_job(tmp_path)
    error = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(replace(job, objective=Failing(job.objective, 1, error)), Silent())


def test_a_mixture_resumes_in_the_middle_of_an_epoch(tmp_path):
    """Stopped after a step and resumed, training on a repeated part ends as if nothing had
    happened."""
    split = make_source().split
    split = replace(split, parts={"large": 3, "small": 2})
    source = CausalSequences(split, LENGTH, 0, attend_across_documents=False)
    drawing = MixedSequences(source, {"large": 1.4, "small": 1.0})
    assert drawing.num_sequences > source.num_sequences
    whole = make_job(tmp_path / "whole", source=drawing)
    train(whole, Silent())
    with StopRequest() as stop, pytest.raises(Stopped):
        train(make_job(tmp_path / "stopped", source=drawing), Impatient(2), stop)
    resumed = make_job(tmp_path / "stopped", source=drawing)
    train(resumed, Silent())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name

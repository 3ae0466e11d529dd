"""The benchmark of a GPU, as far as a CPU can tell: its steps, its sums, its refusal."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from benchmarks.gpu import Case, Result
from benchmarks.ours import build_batch

from benchmarks import gpu, measure
from stillhouse.training.cost import Rates, Roofline, StepCost

CPU = torch.device("cpu")


@pytest.fixture(params=["bert", "gpt2"])
def case(request, pairs) -> Case:
    pair = pairs[request.param]
    return Case("tiny", dataclasses.replace(pair, ragged=False), "all", 0, CPU)


@pytest.mark.parametrize("step", ["ours", "2019", "2019-bf16"])
def test_every_step_trains_the_student_alone(case, step):
    """Each step of it changes every weight of the student, and none of the teacher."""
    models = case.models()
    run = case.step_on(models, step)
    for _ in range(2):
        before = [parameter.detach().clone() for parameter in models.student.parameters()]
        teacher = [parameter.clone() for parameter in models.teacher.parameters()]
        run()
        for old, new in zip(before, models.student.parameters(), strict=True):
            assert not torch.equal(old, new)
        for old, new in zip(teacher, models.teacher.parameters(), strict=True):
            assert torch.equal(old, new)


def test_whole_sequences_carry_no_mask(case):
    """What packing gives where documents are long: the fast attention kernels can take it."""
    batch = build_batch(case.pair, case.seed)
    assert batch.attention_mask() is None
    assert batch.num_rows("all") == batch.input_ids.numel()


def test_both_steps_compute_the_same(case):
    """On whole sequences too, before anything is timed."""
    assert gpu.equal_in_float32(case).holds()


def test_utilization_is_flops_over_the_peak(case):
    """6 MFLOPs per token at 1,000 tokens/s are 6 GFLOP/s: 60 % of a peak of 10."""
    work = StepCost({"student_body": 6e6}, {"optimizer": 1.0}, (1, 1, 1), "bf16")
    roofline = Roofline(work, Rates(12e9, 1e12))
    same, seconds = gpu.equal_in_float32(case), [0.5, 0.1, 0.9]
    result = Result("tiny", "all", 500, same, roofline, 1e10, {"ours": 7}, {"ours": seconds})
    assert result.summary()["ours"] == {
        "median_seconds": 0.5,
        "tokens_per_second": 1000,
        "utilization": pytest.approx(0.6),
        "roofline_share": pytest.approx(0.5),
    }
    unknown = dataclasses.replace(result, peak_flops=None)
    assert unknown.utilization("ours") is None
    json.dumps(dataclasses.asdict(result))


@pytest.mark.e2e
def test_without_a_device_it_says_so():
    """One sentence, and the exit code of wrong use."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        timeout=200,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs a CUDA device, and torch finds none here.\n" in done.stderr


def test_timings_are_in_turns_after_a_warm_up():
    """Each step is run once more than it is timed, and the steps alternate."""
    seen: list[str] = []
    steps = {name: lambda name=name: seen.append(name) for name in ("a", "b")}
    seconds = measure.interleaved_seconds(steps, repeats=3)
    assert seen == ["a", "b"] * 4
    assert [len(times) for times in seconds.values()] == [3, 3]

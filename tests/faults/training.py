"""Faults in training: kills, signals, numbers that are not finite, memory that is refused."""

import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.harness import Trial, initialized, row
from tests.pipeline.processes import Server, kill, serving
from tests.pipeline.tiny_run import TinyRun
from tests.training.jobs import LENGTH, Failing, Poison, Silent, make_job

from stillhouse.errors import ResourceError, TrainingError
from stillhouse.runs.manifest import verify
from stillhouse.training.engine import train

STEPS = 24
LONGER = (
    f"distillation.max_tokens={STEPS * 256}",
    "distillation.micro_batch_tokens=128",
    "distillation.dropout=true",
)
SHARDED = ("distillation.sharded=true", "distillation.teacher_sharded=true")
LOADED = "; roofline "  # logged once training knows where it resumes
EVERY_STEP = "distillation.checkpoint.every_steps=1"
MEMORY_ERRORS = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
)


def outcome(run: TinyRun) -> tuple[str, list[tuple[int, float]]]:
    """The hash of the student's weights, and the loss of each step."""
    return run.weights(), [(line["step"], line["loss"]) for line in run.metrics()]


def begin_again(run: TinyRun) -> None:
    shutil.rmtree(run.folder / "student")
    (run.folder / "metrics.jsonl").unlink()
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # killed just after the student


def check_last_step_is_committed(run: TinyRun) -> None:
    """The step that was logged last is that of the newest checkpoint, or of the student."""
    if not (run.folder / "student").exists():
        committed = json.loads((run.checkpoints()[-1] / "state.json").read_text())
        assert committed["step"] == run.metrics()[-1]["step"]


class Interrupted:
    """One run that is interrupted again and again, and compared whenever it comes to its end."""

    def __init__(self, server: Server, folder: Path, *settings: str, ranks: int = 1) -> None:
        self.server, self.settings, self.ranks = server, settings, ranks
        self.trained = False
        ready = initialized(folder)
        whole = ready.copy(folder / "whole")
        self.distill(whole)
        self.expected = outcome(whole)
        self.run = ready.copy(folder / "interrupted")

    def distill(self, run: TinyRun) -> None:
        code, log = self.server.distill(run, *self.settings, ranks=self.ranks)
        assert code == 0, log

    def start(self, draw: random.Random) -> list[int]:
        """Start, and return some steps later; now and then before the first."""
        if (self.run.folder / "student").exists():
            begin_again(self.run)
        kept = self.run.checkpoints()
        done = int(kept[-1].name.removeprefix("step-")) if kept else 0
        processes = self.server.start(self.run, *self.settings, ranks=self.ranks)
        self.trained = draw.random() < 0.9
        if not self.trained:  # a moment before training, or any other
            time.sleep(draw.uniform(0, 1))
            return processes
        wanted = min(STEPS - 1, done + draw.randint(1, 8))
        deadline = time.monotonic() + 120
        while LOADED not in self.server.log.read_text() or len(self.run.metrics()) < wanted:
            assert time.monotonic() < deadline, self.server.log.read_text()
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.02))
        return processes

    def compare_if_done(self) -> None:
        if (self.run.folder / "student").exists():
            assert outcome(self.run) == self.expected

    def finish(self) -> None:
        self.distill(self.run)
        assert outcome(self.run) == self.expected
        assert not (left := list(self.run.folder.rglob("*.tmp-*"))), left


def killed(folder: Path, *settings: str, ranks: int = 1) -> Iterator[Trial]:
    with serving(folder) as server:
        job = Interrupted(server, folder, *LONGER, EVERY_STEP, *settings, ranks=ranks)

        def trial(draw: random.Random) -> None:
            processes = job.start(draw)
            if draw.random() < 0.5:
                wait_for_save(job.run, seconds=0.2)
            before = {path.name for path in job.run.checkpoints()}
            victim = draw.randrange(ranks)
            kill([processes[victim]], signal.SIGKILL)
            codes = server.wait()
            if codes[victim] == -signal.SIGKILL:
                left = {8, 128 + signal.SIGTERM, -signal.SIGTERM}
                left |= {0} if (job.run.folder / "student").exists() else set()
                assert set(codes) - {-signal.SIGKILL} <= left, codes
            if not (job.run.folder / "student").exists():
                after = job.run.checkpoints()
                assert max(before, default="") <= max((path.name for path in after), default="")
                for path in after[-1:]:
                    verify(path)
            job.compare_if_done()

        yield trial
        job.finish()


def wait_for_save(run: TinyRun, seconds: float) -> None:
    """Return inside a checkpoint's save, or after a number of seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(run.folder / "checkpoints/student")
            if any(name.startswith(".step-") for name in names):
                return


@row(
    1,
    "kill -9 at random moments, half of them inside a save",
    "the newest commit is intact, none is lost, the final weights are bit-identical",
    full=300,
    sample=2,
)
def kills(folder: Path) -> Iterator[Trial]:
    yield from killed(folder)


@row(
    1,
    "kill -9 of one of two ranks",
    "the other rank exits; then as with one rank",
    full=50,
    sample=0,
)
def kills_of_a_rank(folder: Path) -> Iterator[Trial]:
    yield from killed(folder, ranks=2)


@row(
    1,
    "kill -9 of one of two ranks, student and teacher sharded",
    "the same",
    full=25,
    sample=0,
)
def kills_of_a_sharded_rank(folder: Path) -> Iterator[Trial]:
    yield from killed(folder, *SHARDED, ranks=2)


@row(
    2,
    "stopped three times in one run; 1 to 3 epochs, 1 or 4 micro-batches, eager and compiled",
    "losses, weights and sample order are bit-identical",
    full=12,
    sample=1,
)
def resumed(folder: Path) -> Iterator[Trial]:
    combinations = itertools.cycle(itertools.product(("false", "true"), (1, 2, 3), (256, 64)))
    with serving(folder) as server:

        def trial(draw: random.Random) -> None:
            compiled, epochs, micro = next(combinations)
            settings = (
                "distillation.max_tokens=null",
                f"distillation.epochs={epochs}",
                f"distillation.micro_batch_tokens={micro}",
                f"distillation.compile={compiled}",
            )
            place = folder / f"{epochs}-{micro}-{compiled}"
            job = Interrupted(server, place, *settings)
            for _ in range(3):
                kill(job.start(draw), signal.SIGTERM)
                assert server.wait() in ([128 + signal.SIGTERM], [0], [-signal.SIGTERM])
            job.finish()

        yield trial


def signalled(folder: Path, *numbers: int, ranks: int = 1) -> Iterator[Trial]:
    with serving(folder) as server:
        job = Interrupted(server, folder, *LONGER, ranks=ranks)

        def trial(draw: random.Random) -> None:
            number = draw.choice(numbers)
            processes = job.start(draw)
            asked = time.monotonic()
            kill([draw.choice(processes)], number)
            codes = set(server.wait())
            assert time.monotonic() - asked < 25
            said = server.log.read_text()
            assert "Traceback" not in said
            by_the_launcher = {-signal.SIGTERM} if ranks > 1 else set()
            if job.trained and codes != {0}:
                assert 128 + number in codes <= {128 + number} | by_the_launcher, said
                assert "is committed" in said
                check_last_step_is_committed(job.run)
            else:  # before training begins, SIGTERM ends a process as it does any other
                assert codes <= {128 + number, 0, -signal.SIGTERM, TrainingError.exit_code}, said
            job.compare_if_done()

        yield trial
        job.finish()


@row(
    4,
    "SIGTERM or SIGINT",
    "stops in under 25 s with the last step committed; the final weights are bit-identical",
    full=100,
    sample=2,
)
def signals(folder: Path) -> Iterator[Trial]:
    yield from signalled(folder, signal.SIGTERM, signal.SIGINT)


@row(
    4,
    "SIGTERM to one of two ranks",
    "both stop at the same step, which is committed; the final weights are bit-identical",
    full=25,
    sample=0,
)
def signals_to_one_rank(folder: Path) -> Iterator[Trial]:
    yield from signalled(folder, signal.SIGTERM, ranks=2)


@row(
    7,
    "NaN, infinity or a spike in gradients, at random steps",
    "each is skipped, counted and logged; weights stay finite; five in a row end training",
    full=100,
    sample=3,
)
def poisoned(folder: Path) -> Iterator[Trial]:
    def trial(draw: random.Random) -> None:
        factor = draw.choice((math.nan, math.inf, -math.inf, 1e6))
        steps = set(draw.sample(range(18, 40), draw.randint(1, 12)))
        groups = itertools.groupby(range(1, 41), steps.__contains__)
        runs = [len(list(group)) for bad, group in groups if bad]
        place = folder / str(draw.random())
        settings: dict[str, Any] = {"micro_batch_tokens": 6 * LENGTH, "max_tokens": 40 * 6 * LENGTH}
        job = make_job(place, losses={"soft_target": {"weight": 1.0}}, **settings)
        Poison(job.model, steps, factor=factor)
        reporter = Silent()
        if max(runs) >= 5:
            with pytest.raises(TrainingError):
                train(job, reporter)
        else:
            assert train(job, reporter).skipped_steps == len(steps)
            assert sum("is skipped" in line for line in reporter.said) == len(steps)
        assert all(torch.isfinite(parameter).all() for parameter in job.model.parameters())
        shutil.rmtree(place)

    yield trial


@row(
    8,
    "memory refused at a random micro-batch",
    "the micro-batch is halved with the same result, or one clear error",
    full=50,
    sample=3,
)
def refused(folder: Path) -> Iterator[Trial]:
    whole = make_job(folder / "whole", micro_batch_tokens=4 * LENGTH)
    train(whole, Silent())
    expected = list(whole.model.parameters())

    def trial(draw: random.Random) -> None:
        place = folder / str(draw.random())
        sequences = draw.choice((1, 2, 4, 6))
        job = make_job(place, micro_batch_tokens=sequences * LENGTH)
        objective = Failing(job.objective, draw.randint(1, 7), draw.choice(MEMORY_ERRORS))
        job = replace(job, objective=objective)
        if sequences == 1:
            with pytest.raises(ResourceError, match="micro-batch of 1 sequences"):
                train(job, Silent())
            return
        assert train(job, Silent()).micro_batch_sequences
        for parameter, other in zip(job.model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter, other, rtol=1e-3, atol=1e-5)
        shutil.rmtree(place)

    yield trial

"""The training loop: any model, any objective that returns sums, exact to resume.

One optimizer step reads one batch, a pure function of (seed, step). The batch is split into
micro-batches; each term is divided once by its own rows in the whole batch, so the split does not
change the result. A step waits for the device once, at its end, when it reads what it logs.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.errors import Stopped, TrainingError
from stillhouse.recipe import Rows, TrainingRecipe
from stillhouse.run_folder import Inputs
from stillhouse.tokens.batches import Batch, SequenceSource, StepBatches
from stillhouse.training.allocator import keep_freed_memory
from stillhouse.training.checkpoint import Checkpoints, Progress
from stillhouse.training.device import (
    Precision,
    autocast,
    explained_memory_errors,
    micro_batch_sequences,
    pick_precision,
)
from stillhouse.training.floor import Floor
from stillhouse.training.metrics import MetricsLog
from stillhouse.training.optimizer import (
    learning_parameters,
    learning_rate_factor,
    make_optimizer,
    set_learning_rate,
)
from stillhouse.training.progress import Reporter
from stillhouse.training.signals import StopRequest
from stillhouse.training.work import sequences_per_step

TERM_NORMS_EVERY_STEPS = 50
SKIPPED_STEPS_IN_A_ROW = 5


@runtime_checkable
class Objective(Protocol):
    """Sums of weighted terms over a micro-batch."""

    @property
    def weights(self) -> dict[str, float]: ...

    @property
    def rows(self) -> dict[str, Rows]: ...

    def __call__(
        self, model: PreTrainedModel, batch: Batch, coefficients: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


@dataclass(frozen=True)
class TrainingJob:
    """One model to train: what it learns from, for how long, and where its traces go."""

    name: str
    model: PreTrainedModel
    objective: Objective
    batches: StepBatches
    recipe: TrainingRecipe
    checkpoints: Checkpoints
    metrics: Path
    device: torch.device
    floor: Floor

    def facts(self, progress: Progress) -> dict[str, int | float]:
        """What a manifest says of the finished training."""
        return progress.facts() | self.floor.facts(progress.tokens / progress.seconds)


def plan_batches(
    source: SequenceSource, recipe: TrainingRecipe, *, seed: int, num_steps: int | None = None
) -> StepBatches:
    """The batches of a run: `epochs` or `max_tokens` of the recipe, or exactly `num_steps`
    steps."""
    per_step = sequences_per_step(recipe, source.sequence_length)
    num_samples = recipe.epochs * source.num_sequences
    if recipe.max_tokens is not None:
        num_samples = math.ceil(recipe.max_tokens / source.sequence_length)
    if num_steps is not None:
        num_samples = num_steps * per_step
    return StepBatches(source, seed=seed, sequences_per_step=per_step, num_samples=num_samples)


def checkpoints_for(
    folder: Path, inputs: Inputs, recipe: TrainingRecipe, reporter: Reporter
) -> Checkpoints:
    """Where a job's checkpoints are, refused under any other inputs."""
    return Checkpoints(folder, inputs, keep_last=recipe.checkpoint.keep_last, say=reporter.say)


def train(job: TrainingJob, reporter: Reporter) -> Progress:
    """Train to the end, going on from the newest checkpoint where there is one.

    Raises:
        Stopped: SIGINT or SIGTERM; the last completed step is committed.
        TrainingError: several steps in a row were not finite.
        ResourceError: out of memory or disk.
    """
    keep_freed_memory()
    model = job.model.to(job.device).train(job.recipe.dropout)  # pyright: ignore[reportArgumentType]
    compile_body(model, job.recipe, job.device)
    optimizer = make_optimizer(model, job.recipe.optimizer)
    progress = job.checkpoints.load_newest(model, optimizer) or Progress()
    if progress.step:
        reporter.say(f"{job.name}: going on after step {progress.step}")
    reporter.say(f"{job.name}: {job.floor}")
    loop = _Loop(job, optimizer, progress)
    reporter.start(job.name, progress.step, job.batches.num_steps)
    try:
        with MetricsLog(job.metrics, job.name, progress.step + 1) as log, StopRequest() as stop:
            while loop.progress.step < job.batches.num_steps:
                with explained_memory_errors(
                    loop.micro_sequences, job.batches.source.sequence_length
                ):
                    values = loop.run_step(stop)
                if values is None:
                    break
                log.write(loop.progress.step, values)
                reporter.step(loop.progress.step, values)
                if loop.progress.step % job.recipe.checkpoint.every_steps == 0:
                    job.checkpoints.save(model, optimizer, loop.progress)
            if stop.signal_number is not None:  # also one that came during the last step
                job.checkpoints.save(model, optimizer, loop.progress)
                raise Stopped(
                    f"Stopped by signal {stop.signal_number} after step {loop.progress.step} of "
                    f"{job.batches.num_steps}, which is committed. Give the same command again to "
                    "go on.",
                    stop.signal_number,
                )
    finally:
        reporter.finish()
    model.eval()
    return loop.progress


def compile_body(model: PreTrainedModel, recipe: TrainingRecipe, device: torch.device) -> None:
    """Compile the body where the recipe says so; `auto` is on a GPU alone."""
    if recipe.compile is True or (recipe.compile == "auto" and device.type == "cuda"):
        model.base_model.compile()


class _Loop:
    """The changing state of one training run: the optimizer and how far it is."""

    def __init__(
        self, job: TrainingJob, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        self.job = job
        self.optimizer = optimizer
        self.progress = progress
        self.precision: Precision = pick_precision(job.recipe.precision, job.device)
        self.micro_sequences = micro_batch_sequences(
            job.recipe.micro_batch_tokens, job.device, job.batches.source.sequence_length
        )
        self._skipped_in_a_row = 0

    def run_step(self, stop: StopRequest) -> dict[str, int | float] | None:
        """One optimizer step's metrics; None where a stop was asked for before it was complete."""
        started = time.monotonic()
        job = self.job
        batch = job.batches.step(self.progress.step)
        counts = {name: max(1, batch.num_rows(rows)) for name, rows in job.objective.rows.items()}
        coefficients = {
            name: weight / counts[name] for name, weight in job.objective.weights.items()
        }
        sums: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        for number, part in enumerate(batch.split(self.micro_sequences)):
            if stop.signal_number is not None:
                self.optimizer.zero_grad(set_to_none=True)
                return None
            micro = part.to(job.device)
            if (
                number == 0
                and self.progress.step % TERM_NORMS_EVERY_STEPS == 0
                and len(coefficients) > 1
            ):
                norms = self._term_norms(micro, coefficients)
            for name, value in self._backward(micro, coefficients, number).items():
                sums[name] = sums[name] + value if name in sums else value
        found = _read({**sums, **norms, "grad_norm": self._clip()})
        means = {name: found.pop(name) / counts[name] for name in sums}
        learning_rate = self._update(means, found["grad_norm"])
        seconds = time.monotonic() - started
        tokens = batch.num_rows("all")
        done = self.progress
        self.progress = replace(
            done, step=done.step + 1, tokens=done.tokens + tokens, seconds=done.seconds + seconds
        )
        loss = sum(job.objective.weights[name] * mean for name, mean in means.items())
        return {
            "loss": loss,
            **(means if len(means) > 1 else {}),
            "grad_norm": found.pop("grad_norm"),
            "learning_rate": learning_rate,
            "tokens": self.progress.tokens,
            "tokens_per_second": tokens / seconds,
            "floor_share": job.floor.share(tokens / seconds),
            "seconds": self.progress.seconds,
            "skipped_steps": self.progress.skipped_steps,
            **found,
        }

    def _forward(
        self, batch: Batch, coefficients: Mapping[str, float], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Dropout is drawn from (seed, step, micro-batch), whatever ran before."""
        torch.manual_seed(hash((self.job.batches.seed, self.progress.step, number)) % 2**63)
        with autocast(self.job.device, self.precision):
            return self.job.objective(self.job.model, batch, coefficients)

    def _backward(
        self, batch: Batch, coefficients: Mapping[str, float], number: int
    ) -> dict[str, Tensor]:
        loss, values = self._forward(batch, coefficients, number)
        loss.backward()
        return values

    def _term_norms(self, batch: Batch, coefficients: Mapping[str, float]) -> dict[str, Tensor]:
        """Norm of each weighted term's own gradient on one micro-batch."""
        parameters = list(learning_parameters(self.optimizer))
        norms = {}
        for name, coefficient in coefficients.items():
            loss, _ = self._forward(batch, {name: coefficient}, 0)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            present = [gradient for gradient in gradients if gradient is not None]
            norms[f"grad_norm/{name}"] = torch.nn.utils.get_total_norm(present)
        return norms

    def _clip(self) -> Tensor:
        """Limit the gradient's norm; returns what it was before."""
        return torch.nn.utils.clip_grad_norm_(
            list(learning_parameters(self.optimizer)), self.job.recipe.optimizer.max_grad_norm
        )

    def _update(self, means: Mapping[str, float], grad_norm: float) -> float:
        """Apply the gradients at the learning rate that is returned; a step that is not finite is
        skipped, counted and limited."""
        recipe = self.job.recipe
        factor = learning_rate_factor(
            recipe.schedule, self.progress.step, self.job.batches.num_steps
        )
        learning_rate = recipe.optimizer.learning_rate * factor
        if math.isfinite(grad_norm) and all(map(math.isfinite, means.values())):
            set_learning_rate(self.optimizer, learning_rate)
            self.optimizer.step()
            self._skipped_in_a_row = 0
        else:
            self._skipped_in_a_row += 1
            self.progress = replace(self.progress, skipped_steps=self.progress.skipped_steps + 1)
        self.optimizer.zero_grad(set_to_none=True)
        if self._skipped_in_a_row == SKIPPED_STEPS_IN_A_ROW:
            bad = [name for name, mean in means.items() if not math.isfinite(mean)] or [
                "the gradient"
            ]
            raise TrainingError(
                f"{self.job.name}: {SKIPPED_STEPS_IN_A_ROW} steps in a row were not finite "
                f"({', '.join(bad)}), the last at step {self.progress.step + 1}. The weights are "
                "unharmed; "
                "lower the learning rate, or train in fp32."
            )
        return learning_rate


def _read(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Single values as numbers, all at once: the one place where a step waits for the device."""
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

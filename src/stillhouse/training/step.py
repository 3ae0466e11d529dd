"""One optimizer step: micro-batches on every rank, one sum of gradients, one update.

The step's sequences are cut into micro-batches, and whole micro-batches are dealt to the ranks, so
that micro-batches do not depend on the number of ranks. A rank with fewer than the others adds
blank ones, so that all ranks run the same number of collectives. Before each backward pass they
agree on whether to continue: a signal or a failed allocation on any rank ends the step on all of
them, and its partial gradients are dropped.
"""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stillhouse.errors import ResourceError, TrainingError
from stillhouse.tokens.batches import AnyBatch, sample_key
from stillhouse.training.device import (
    Precision,
    autocast,
    explained_memory_errors,
    is_out_of_memory,
    out_of_memory,
    seed_generators,
)
from stillhouse.training.job import TrainingJob
from stillhouse.training.parallel import communicating, is_sharded, reshard, whole
from stillhouse.training.progress import FINAL_FACTOR, Progress, Reporter, loss_floor
from stillhouse.training.ranks import StopRequest, lost_ranks_explained
from stillhouse.training.settings import OptimizerRecipe, ScheduleRecipe

TERM_NORMS_EVERY_STEPS = 50
SKIPPED_STEPS_IN_A_ROW = 5
SPIKE = 20.0  # times the median norm of the last steps
NORMS_KEPT, FEWEST_NORMS = 64, 16
OUT_OF_MEMORY = 2**16  # what the ranks agree on: 0, a signal's number, or this


@dataclass
class TrainStep:
    """The mutable state of one training run: its optimizer and progress.

    `model_with_loss` maps a micro-batch and coefficients to a loss and its terms, on every rank.
    """

    job: TrainingJob
    model_with_loss: nn.Module
    optimizer: torch.optim.Optimizer
    progress: Progress
    precision: Precision
    reporter: Reporter
    _skipped_in_a_row: int = field(default=0, init=False)
    _out_of_memory: bool = field(default=False, init=False)

    def run(self, stop: StopRequest) -> dict[str, int | float] | None:
        """Run one optimizer step and return its metrics; None where a signal ended it early."""
        length = self.job.batches.source.sequence_length
        size = self.job.micro_batch_size(self.progress)
        started = time.monotonic()
        with explained_memory_errors(size, length, self.job.section):
            while isinstance(found := self.accumulate(stop), int):
                self.optimizer.zero_grad(set_to_none=True)
                reshard(self.model_with_loss)
                if found != OUT_OF_MEMORY:
                    return None
                self._halve_the_micro_batch()
                self._reset_reducer()
            means, norms, tokens = found
            grad_norm = float(self._clip())
            learning_rate = self._update(means, grad_norm)
        seconds = time.monotonic() - started
        done = self.progress
        self.progress = replace(
            done, step=done.step + 1, tokens=done.tokens + tokens, seconds=done.seconds + seconds
        )
        loss = self._weighted(means)
        self._watch(loss)
        return {
            "loss": loss,
            **(means if len(means) > 1 else {}),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "tokens": self.progress.tokens,
            "tokens_per_second": tokens / seconds,
            "mfu": self.job.roofline.mfu(tokens / seconds / self.job.ranks.size),
            "seconds": self.progress.seconds,
            "skipped_steps": self.progress.skipped_steps,
            **norms,
        }

    def _weighted(self, means: Mapping[str, float]) -> float:
        return sum(self.job.objective.weights[name] * mean for name, mean in means.items())

    def _watch(self, loss: float) -> None:
        """Add a step's loss to the trend.

        Raises:
            TrainingError: training diverges.
        """
        trend = self.progress.trend.after(loss, loss_floor(self.job.objective.weights))
        self.progress = replace(self.progress, trend=trend)
        if trend.has_diverged(is_last=self.progress.step == self.job.batches.num_steps):
            raise self._diverged(f"the loss is {loss:.3g} and was {trend.best:.3g} at best")

    def check_outcome(self) -> None:
        """Reject weights that the last step has ruined, by the loss of one micro-batch.

        Raises:
            TrainingError: it is not finite, or far above every level of the training.
        """
        job, trend = self.job, self.progress.trend
        step = max(0, self.progress.step - 1)
        size = min(job.micro_batch_size(self.progress), len(job.batches.samples(step)[0]))
        batch = job.batches.step(step, slice(0, size)).to(job.device)
        rows = job.objective.rows.items()
        counts = {name: max(1, batch.num_rows(kind)) for name, kind in rows}
        coefficients = {name: job.objective.weights[name] / count for name, count in counts.items()}
        sums = self._forward(batch, coefficients, 0)[1]
        means = {name: value / counts[name] for name, value in self._read(sums).items()}
        loss = self._weighted({name: mean / job.ranks.size for name, mean in means.items()})
        if trend.is_far(loss, loss_floor(job.objective.weights), FINAL_FACTOR):
            best = "" if trend.best is None else f" and was {trend.best:.3g} at best"
            raise self._diverged(f"the loss is {loss:.3g}{best}")

    def _diverged(self, reason: str) -> TrainingError:
        section, recipe = self.job.section, self.job.recipe
        return TrainingError(
            f"{self.job.label}: training diverged at step {self.progress.step}: {reason}. Lower "
            f"{section}.optimizer.learning_rate (now {recipe.optimizer.learning_rate:g}); with "
            "the same --run-dir, name the stage in --overwrite."
        )

    def accumulate(self, stop: StopRequest) -> tuple[dict[str, float], dict[str, float], int] | int:
        """Accumulate the gradients of the whole step. Returns each term's mean, the terms' gradient
        norms where they are due, and the step's tokens; or the reason why the ranks ended it."""
        job, ranks = self.job, self.job.ranks
        parts = list(self._micro_batches())
        counts = self._counts([part for _, part in parts])
        coefficients = {
            name: weight / counts[name] for name, weight in job.objective.weights.items()
        }
        sums: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        self._out_of_memory = False
        for place, (number, part) in enumerate(parts):
            last = place == len(parts) - 1
            micro = part.to(job.device)
            is_due = self.progress.step % TERM_NORMS_EVERY_STEPS == 0
            if place == 0 and len(coefficients) > 1 and is_due:
                with self._watching(others_wait=job.gathers):
                    norms = self._term_norms(micro, coefficients, number)
            with communicating(self.model_with_loss, last=last):
                with self._watching(others_wait=job.gathers):
                    loss, values = self._forward(micro, coefficients, number)
                reason = OUT_OF_MEMORY if self._out_of_memory else stop.signal_number or 0
                if reason := ranks.highest(reason):
                    return reason
                with self._watching(others_wait=job.gathers or last):
                    loss.backward()
            if self._out_of_memory and last:
                return OUT_OF_MEMORY
            for name, value in values.items():
                sums[name] = sums[name] + value if name in sums else value
        means = {name: value / counts[name] for name, value in self._read(sums).items()}
        return means, self._read(norms, over_ranks=False), counts["tokens"]

    def _micro_batches(self) -> Iterator[tuple[int, AnyBatch]]:
        """This rank's micro-batches with their numbers in the whole step."""
        job, step = self.job, self.progress.step
        size = job.micro_batch_size(self.progress)
        num_sequences = len(job.batches.samples(step)[0])
        rounds = -(-num_sequences // (size * job.ranks.size))
        first = job.ranks.rank * rounds
        part = slice(first * size, (first + rounds) * size)
        if part.start < num_sequences:
            own = list(job.batches.step(step, part).split(size))
        else:
            own = [job.batches.step(step, slice(0, 1)).blank()]
        for place in range(rounds):
            yield first + place, own[place] if place < len(own) else own[-1].blank()

    def _counts(self, parts: list[AnyBatch]) -> dict[str, int]:
        """Rows of each term in the step of all ranks, never zero, and its `tokens`."""
        kinds = sorted({"all", *self.job.objective.rows.values()})
        own = torch.tensor([sum(part.num_rows(kind) for part in parts) for kind in kinds])
        counts = dict(zip(kinds, self.job.ranks.sum(own).tolist(), strict=True))
        rows = {name: max(1, counts[kind]) for name, kind in self.job.objective.rows.items()}
        return {**rows, "tokens": counts["all"]}

    def _forward(
        self, batch: AnyBatch, coefficients: Mapping[str, float], number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a micro-batch; dropout depends on (seed, step, micro-batch) alone."""
        key = sample_key(self.job.batches.seed, self.progress.step, number)
        seed_generators(self.job.device, int(np.random.Philox(key=key).random_raw()) % 2**63)
        with autocast(self.job.device, self.precision):
            return self.model_with_loss(batch, coefficients)

    def _term_norms(
        self, batch: AnyBatch, coefficients: Mapping[str, float], number: int
    ) -> dict[str, Tensor]:
        """The gradient norm of each weighted term on one micro-batch (of each rank, where gradients
        are sharded)."""
        norms: dict[str, Tensor] = {}
        with communicating(self.model_with_loss, last=is_sharded(self.model_with_loss)):
            for name, coefficient in coefficients.items():
                self._forward(batch, {name: coefficient}, number)[0].backward()
                norms[f"grad_norm/{name}"] = whole(
                    torch.nn.utils.get_total_norm(
                        p.grad for p in learning_parameters(self.optimizer) if p.grad is not None
                    )
                )
                self.optimizer.zero_grad(set_to_none=True)
        return norms

    @contextmanager
    def _watching(self, *, others_wait: bool) -> Iterator[None]:
        """Within, memory that is refused is noted, unless other ranks already wait for this pass.

        Raises:
            ResourceError: they do.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if others_wait and self.job.ranks.size > 1:
                raise self._too_large() from error
            self._out_of_memory = True

    def _halve_the_micro_batch(self) -> None:
        """Halve the micro-batch for this step and all later ones.

        Raises:
            ResourceError: a single sequence does not fit.
        """
        size = self.job.micro_batch_size(self.progress)
        if size == 1:
            raise self._too_large()
        self.progress = replace(self.progress, micro_batch_sequences=-(-size // 2))
        if self.job.device.type == "cuda":
            torch.cuda.empty_cache()
        self.reporter.say(
            f"{self.job.label}: out of memory in a micro-batch of {size} sequences; continuing "
            f"with {-(-size // 2)}, in steps of as many tokens as before"
        )

    def _reset_reducer(self) -> None:
        """Reset DDP's reducer after a step that was ended early.

        The last forward pass of a replica has prepared its reducer to sum gradients in the next
        backward pass, whichever that is. A blank micro-batch consumes that state."""
        if isinstance(self.model_with_loss, DistributedDataParallel):
            blank = self.job.batches.step(self.progress.step, slice(0, 1)).blank()
            coefficients = dict.fromkeys(self.job.objective.weights, 1.0)
            self._forward(blank.to(self.job.device), coefficients, 0)[0].backward()
            self.optimizer.zero_grad(set_to_none=True)

    def _too_large(self) -> ResourceError:
        size = self.job.micro_batch_size(self.progress)
        return out_of_memory(size, self.job.batches.source.sequence_length, self.job.section)

    def _clip(self) -> Tensor:
        """Clip the gradient's norm; returns the norm before."""
        with lost_ranks_explained():
            return whole(
                torch.nn.utils.clip_grad_norm_(
                    list(learning_parameters(self.optimizer)),
                    self.job.recipe.optimizer.max_grad_norm,
                )
            )

    def _read(self, values: Mapping[str, Tensor], *, over_ranks: bool = True) -> dict[str, float]:
        """Scalar tensors as numbers, with one synchronization."""
        if not values:
            return {}
        stacked = torch.stack([value.float() for value in values.values()])
        found = self.job.ranks.sum(stacked) if over_ranks else stacked
        return dict(zip(values, found.tolist(), strict=True))

    def _update(self, means: Mapping[str, float], grad_norm: float) -> float:
        """Apply the gradients and return the learning rate. A step whose loss or gradient is not
        finite, or a spike, is skipped; too many in a row end training."""
        recipe, done = self.job.recipe, self.progress
        factor = learning_rate_factor(recipe.schedule, done.step, self.job.batches.num_steps)
        learning_rate = recipe.optimizer.learning_rate * factor
        reason = skip_reason(means, grad_norm, done.recent_norms)
        if reason is None:
            set_learning_rate(self.optimizer, learning_rate)
            self.optimizer.step()
            self._skipped_in_a_row = 0
            recent = (*done.recent_norms, grad_norm)[-NORMS_KEPT:]
            self.progress = replace(done, recent_norms=recent)
        else:
            self._skipped_in_a_row += 1
            self.progress = replace(done, skipped_steps=done.skipped_steps + 1)
            self.reporter.say(f"{self.job.label}: step {done.step + 1} is skipped: {reason}")
        self.optimizer.zero_grad(set_to_none=True)
        if self._skipped_in_a_row == SKIPPED_STEPS_IN_A_ROW:
            raise self._stuck(reason or "")
        return learning_rate

    def _stuck(self, reason: str) -> TrainingError:
        """The error of a training that only skips steps."""
        step = self.progress.step + 1
        skipped = f"{SKIPPED_STEPS_IN_A_ROW} steps in a row were skipped, the last at step {step}"
        section, recipe = self.job.section, self.job.recipe
        if step == SKIPPED_STEPS_IN_A_ROW:  # no step has changed anything yet
            return TrainingError(
                f"{self.job.label}: {skipped}: {reason}. No step was taken before: the weights "
                "that training starts from, or its teacher's, hold NaN or infinity, or a product "
                f"overflows. Compare the models on some text, or set {section}.precision to fp32."
            )
        return TrainingError(
            f"{self.job.label}: training diverged at step {step}: {skipped}: {reason}. Lower "
            f"{section}.optimizer.learning_rate (now {recipe.optimizer.learning_rate:g}), or set "
            f"{section}.precision to fp32."
        )


def skip_reason(
    means: Mapping[str, float], grad_norm: float, recent_norms: tuple[float, ...]
) -> str | None:
    """Why a step must be skipped; None where it can be taken.

    A spike is a gradient whose norm is far above the median of recent norms, once there are enough
    of them.
    """
    bad = [name for name, mean in means.items() if not math.isfinite(mean)]
    if not math.isfinite(grad_norm):
        bad.append("the gradient's norm")
    if bad:
        return f"not finite: {', '.join(bad)}"
    if len(recent_norms) < FEWEST_NORMS:
        return None
    usual = statistics.median(recent_norms)
    if grad_norm <= SPIKE * usual or not usual:
        return None
    return f"the gradient's norm is {grad_norm:.3g}, {grad_norm / usual:.0f} times the usual"


def make_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases and norms (one axis) have no weight decay."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.eps,
        fused=True,
    )


def learning_rate_factor(schedule: ScheduleRecipe, step: int, num_steps: int) -> float:
    """The factor of the learning rate at `step` (counted from 0) of `num_steps`.

    It rises linearly over the warm-up, and falls linearly, or along half a cosine, to zero at the
    end. The warm-up lasts ceil(warmup_fraction * num_steps) steps, as in 2019.
    """
    warmup = math.ceil(schedule.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    done = (step - warmup) / max(1, num_steps - warmup)
    return 1 - done if schedule.name == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def learning_parameters(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    """The parameters of the optimizer."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])

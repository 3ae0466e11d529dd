"""The training loop, for any model and any objective that returns sums, on any number of ranks.

Resuming is exact: one optimizer step reads one batch, a pure function of (seed, step). The batch is
split into micro-batches; each term is divided once by its rows in the whole batch, so the split
does not change the result. A step synchronizes with the device once, at its end, for its metrics.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from stillhouse.allocator import keep_freed_memory
from stillhouse.families.attention import explicit_attention_mask
from stillhouse.objectives.projection import drop_projection
from stillhouse.training.device import (
    autocast,
    explained_memory_errors,
    pick_precision,
)
from stillhouse.training.job import TrainingJob
from stillhouse.training.metrics import metrics_log
from stillhouse.training.parallel import ModelWithLoss, gather_model, replicate, shard
from stillhouse.training.progress import Progress, Reporter
from stillhouse.training.ranks import NEVER, StopRequest, finishing, lost_ranks_explained, stopped
from stillhouse.training.settings import PretrainingRecipe, TrainingRecipe
from stillhouse.training.step import TrainStep, make_optimizer
from stillhouse.wording import counted, duration

LONG_STEP_SECONDS = 60.0


def train(job: TrainingJob, reporter: Reporter, stop: StopRequest = NEVER) -> Progress:
    """Train to the end, resuming from the newest checkpoint where there is one.

    The model stays on its device; `parallel.gather_model` gathers a sharded one.

    Args:
        stop: Polled before each backward pass.

    Raises:
        Stopped: a signal asked to stop; the last completed step is committed.
        TrainingError: training diverged, several steps in a row were not finite, or another rank
            was lost.
        ResourceError: out of memory or disk.
    """
    keep_freed_memory()
    model = job.model.train(job.recipe.dropout)
    if job.recipe.activation_checkpointing:
        enable_activation_checkpointing(model)
    length = job.batches.source.sequence_length
    with explained_memory_errors(1, length, job.section), lost_ranks_explained():
        model_with_loss = _distribute(job, model)
    optimizer = make_optimizer(model, job.recipe.optimizer)
    progress = job.checkpoints.load_newest(model, optimizer) or Progress()
    _announce(job, progress, reporter)
    precision = pick_precision(job.recipe.precision, job.device)
    steps = TrainStep(job, model_with_loss, optimizer, progress, precision, reporter)
    reporter.start(job.label, progress.step, job.batches.num_steps)
    own_log = metrics_log(job.metrics, job.name, progress.step + 1, reporter.say)
    log = own_log if job.ranks.is_first else nullcontext()
    try:
        with log as write_metrics:
            while steps.progress.step < job.batches.num_steps:
                values = steps.run(stop)
                if values is None:
                    break
                if write_metrics is not None:
                    write_metrics(steps.progress.step, values)
                reporter.step(steps.progress.step, values)
                job.checkpoints.check()
                if job.is_committed_at(steps.progress.step):
                    job.checkpoints.save(model, optimizer, steps.progress, stop)
            else:
                steps.check_outcome()
            number = job.ranks.highest(stop.signal_number or 0)
            if number:  # also for a signal during the last step
                job.checkpoints.save(model, optimizer, steps.progress, stop)
                job.checkpoints.finish()
                raise stopped(
                    number,
                    f"Step {steps.progress.step} of {job.batches.num_steps} of {job.label} is "
                    "committed.",
                )
            job.checkpoints.finish()
    except Exception:
        job.checkpoints.abandon()
        raise
    finally:
        reporter.finish()
    model.eval()
    return steps.progress


def train_and_commit(
    job: TrainingJob,
    what: str,
    reporter: Reporter,
    commit: Callable[[PreTrainedModel, dict[str, Any]], None],
) -> None:
    """Train to the end, let the first rank commit the whole model, and remove the checkpoints.

    Args:
        what: What is committed, for the message of a signal that arrives too late to stop it.
        commit: Called with the model and the facts of its training, for its manifest.

    Raises:
        Stopped: a signal asked to stop; the last completed step, or the model, is committed.
    """
    with finishing(what, job.ranks) as stop:
        facts = {"training": job.facts(train(job, reporter, stop))}
        drop_projection(job.model)
        trained = gather_model(job.model, job.ranks)
        job.ranks.on_rank0(lambda: commit(trained, facts))
        job.checkpoints.clear()


def _announce(job: TrainingJob, progress: Progress, reporter: Reporter) -> None:
    if progress.step:
        reporter.say(f"{job.label}: resuming after step {progress.step}")
    reporter.say(f"{job.label}: {job.roofline}")
    reporter.say(f"{job.label}: {_length_of_a_step(job)}")


def _length_of_a_step(job: TrainingJob) -> str:
    """Number and length of the steps, with the setting that makes long ones shorter."""
    tokens = job.batches.sequences_per_step * job.batches.source.sequence_length
    seconds = tokens / (job.roofline.tokens_per_second * job.ranks.size)
    text = (
        f"{counted(job.batches.num_steps, 'step')} of up to {tokens:,} tokens, each at least "
        f"{duration(seconds)}"
    )
    if seconds < LONG_STEP_SECONDS:
        return text
    key = "tokens_per_step" if isinstance(job.recipe, PretrainingRecipe) else "examples_per_step"
    return f"{text}; lower {job.section}.{key} for shorter steps, and more of them"


def _distribute(job: TrainingJob, model: PreTrainedModel) -> nn.Module:
    """The job's model with its loss: sharded, replicated, or unchanged on a single rank."""
    model_with_loss = ModelWithLoss(model, job.objective)
    if job.ranks.size > 1 and job.recipe.sharded:
        shard(model_with_loss, job.ranks, job.device)  # moves one layer at a time
        return model_with_loss.to(job.device)
    model_with_loss.to(job.device)
    compile_body(model, job.recipe, job.device)
    if job.ranks.size == 1:
        return model_with_loss
    first = slice(0, job.micro_batch_size(Progress()))
    blank = job.batches.step(0, first).blank().to(job.device)
    coefficients: Mapping[str, float] = dict.fromkeys(job.objective.weights, 1.0)
    with autocast(job.device, pick_precision(job.recipe.precision, job.device)):
        return replicate(model_with_loss, blank, coefficients)


def compile_body(model: PreTrainedModel, recipe: TrainingRecipe, device: torch.device) -> None:
    """Compile the body where the recipe says so; `auto` compiles on a GPU only, and never together
    with activation checkpointing."""
    if recipe.activation_checkpointing:
        return
    if recipe.compile is True or (recipe.compile == "auto" and device.type == "cuda"):
        model.base_model.compile()


def enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Keep only each layer's input, and recompute its activations in the backward pass."""

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), explicit_attention_mask(model.config)  # recompute with the same mask

    # Set on the layers: the model's own method changes its name between minor versions.
    recompute = functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = recompute  # pyright: ignore
            module.training = True  # read by this layer only; dropout is unchanged

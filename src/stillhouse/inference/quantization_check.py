"""A model in the precision that is fastest here, where it stays what it is: both are measured on
this model and this machine, before it is used.

Speed: products with the model's matrices, of a single row and of many (`stillhouse.kernels`). A
precision that is slower than float32 in either place is not taken, nor one that is no faster.
Quality: a language model is measured by its perplexity, one with the head of a task by how far its
outputs move: probabilities by their divergence KL(float32 || less) in nats, vectors and values by
the square of the error over the square of what they are.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stillhouse.data.sample import sample_documents
from stillhouse.errors import ModelError, RecipeError
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.kv_cache import Chunk
from stillhouse.inference.load import load
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inference.quantization import (
    Precision,
    has_int8,
    is_faster_than_float32,
    precisions,
    speedups,
    times_of,
    to_precision,
)
from stillhouse.inference.task_model import TaskModel
from stillhouse.models.hub import resolve_folder

ALLOWED = 0.01  # of the perplexity, or of the outputs
PRECISIONS = ("auto", "fp32", "bf16", "int8")
BLOCKS, BLOCK = 2, 256  # of the sample text, in tokens
MASK_EVERY = 7
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")


@dataclass(frozen=True)
class AtPrecision:
    """A model, its precision, by how much what was measured changed (0.01 is a percent), and in
    one line why it has that precision."""

    model: LoadedModel
    precision: Precision
    change: float = 0.0
    reason: str = "as asked"

    @property
    def measured(self) -> str:
        """What was."""
        return _measured(self.model)

    def __str__(self) -> str:
        return f"{self.precision} ({self.reason})"


def load_at_precision(name: str | Path, wanted: str, *, offline: bool = False) -> AtPrecision:
    """A model, in less precision if it stays what it is on the sample text.

    Args:
        wanted: fp32, bf16 or int8; `auto` tries what is faster than float32 on this machine, the
            fastest first.

    Raises:
        RecipeError: a precision that does not exist.
        ModelError: it changes by more than a hundredth in the precision asked for, or this machine
            does not have it.
    """
    if wanted not in PRECISIONS:
        raise RecipeError(f"The precision is {wanted}; choose from {', '.join(PRECISIONS)}.")
    if wanted == "int8" and not has_int8():
        raise ModelError(
            "This machine does not multiply eight-bit matrices exactly; take --precision bf16, or "
            "fp32."
        )
    folder = resolve_folder(str(name), offline=offline)
    model = load(folder)
    if wanted == "fp32":
        return AtPrecision(model, "fp32")
    times = times_of(model.model)
    refused = [] if has_int8() else ["int8 is not exact on this machine"]
    tried: list[Precision] = [cast(Precision, wanted)]
    if wanted == "auto":
        tried = precisions(times, is_causal=isinstance(model, CausalLM))
    for precision in tried:
        speed = _speed_text(speedups(times, precision))
        is_faster = is_faster_than_float32(times, precision, is_causal=isinstance(model, CausalLM))
        if wanted == "auto" and not is_faster:
            refused.append(f"{precision} {speed}")
            continue
        change_since = _measure(model)
        to_precision(model.model, precision, times=times)
        change = change_since(model)
        quality = f"{_measured(model)} {100 * change:+.1f} %"
        if abs(change) <= ALLOWED:
            reason = f"{speed}; {quality}"
            if not times.is_undisturbed:
                reason += "; speeds measured beside other work"
            if not is_faster:
                reason += "; no faster than float32 on this machine"
            return AtPrecision(model, precision, change, reason)
        if wanted != "auto":
            raise ModelError(
                f"In {precision} the {_measured(model)} of {name} changes by {change:.1%} on the "
                f"sample text; {ALLOWED:.0%} is allowed. Take --precision fp32."
            )
        refused.append(f"{precision} {quality}")
        model = load(folder)
    return AtPrecision(model, "fp32", reason=f"not taken: {'; '.join(refused)}")


def _speed_text(found: Mapping[int, float] | None) -> str:
    if found is None:
        return "far slower than float32"
    return f"{found[1]:.1f}x float32 at 1 row, {found[64]:.1f}x at 64 rows"


def _measured(model: LoadedModel) -> str:
    return "outputs" if isinstance(model, TaskModel) else "perplexity"


def _measure(model: LoadedModel) -> Callable[[LoadedModel], float]:
    """What a model is measured by, and how far another has moved from it."""
    if not isinstance(model, TaskModel):
        loss = _causal_loss if isinstance(model, CausalLM) else _masked_loss
        before = loss(model)
        return lambda other: math.expm1(loss(other) - before)
    outputs = _outputs(model)
    return lambda other: _distance(outputs, _outputs(other))


def blocks_of(model: LoadedModel) -> list[list[int]]:
    """The stretches of the sample text on which a model is measured, with the special tokens that
    it reads around a text."""
    length = min(BLOCK, model.context)
    blocks = (
        model.tokenizer(
            text,
            add_special_tokens=not isinstance(model, CausalLM),
            truncation=True,
            max_length=length,
        )["input_ids"]
        for _, text in sample_documents()
    )
    return list(islice((block for block in blocks if len(block) == length), BLOCKS))


def _causal_loss(model: Any) -> float:
    """Mean negative log-likelihood of a token, in nats."""
    slots = model.slots(1)
    losses = []
    for block in blocks_of(model):
        place = slots.open()
        logits = slots.forward([Chunk(place, block, len(block))])
        slots.close(place)
        losses.append(F.cross_entropy(logits[:-1], torch.tensor(block[1:])))
    return float(torch.stack(losses).mean())


@torch.inference_mode()
def _masked_loss(model: LoadedModel) -> float:
    """The same, of every seventh token, for which a mask stands."""
    ids = torch.tensor(blocks_of(model))
    places = torch.arange(MASK_EVERY, ids.shape[1] - 1, MASK_EVERY)
    mask = torch.tensor(model.tokenizer.mask_token_id)
    logits = model.model(input_ids=ids.index_fill(1, places, mask)).logits[:, places]
    return float(F.cross_entropy(logits.float().flatten(0, 1), ids[:, places].flatten()))


@torch.inference_mode()
def _outputs(model: LoadedModel) -> dict[str, Tensor]:
    """All that the model says of the sample text, by the names of transformers' outputs."""
    found = model.model(input_ids=torch.tensor(blocks_of(model)))
    return {name: found[name].float() for name in OUTPUTS if name in found}


def _distance(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    return max(_moved(name, before[name], after[name]) for name in before)


def _moved(name: str, old: Tensor, new: Tensor) -> float:
    if name == "last_hidden_state" or old.shape[-1] == 1:
        return float((new - old).square().sum() / old.square().sum())
    p, q = old.log_softmax(-1), new.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())

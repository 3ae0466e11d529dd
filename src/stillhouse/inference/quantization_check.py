"""The quantization check: a lower precision is used only if it is faster here and keeps the quality
of this model. Both are measured before the model is used.

Speed: products with the model's matrices, of one row and of many (`stillhouse.kernels`). A
precision that is slower than float32 at either, or no faster, is rejected.
Quality: the perplexity of a language model; for a model with the head of a task, how far its
outputs move: KL(float32 || lower precision) of probabilities, in nats, and the relative squared
error of embeddings and values.
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

from stillhouse.data.sources.sample import sample_documents
from stillhouse.errors import ModelError, RecipeError
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.kv_cache import Chunk
from stillhouse.inference.load import load
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

ALLOWED = 0.01  # relative change of the perplexity, or of the outputs
PRECISIONS = ("auto", "fp32", "bf16", "int8")
BLOCKS, BLOCK = 2, 256  # of the sample text, in tokens
MASK_EVERY = 7
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")


@dataclass(frozen=True)
class AtPrecision:
    """A model and its precision.

    Attributes:
        change: Of what was measured, relative (0.01 is one percent).
        reason: Why the model has this precision, in one line.
    """

    model: Any  # a CausalLM, a MaskedLM or a TaskModel
    precision: Precision
    change: float = 0.0
    reason: str = "as requested"

    @property
    def measured(self) -> str:
        """The measure of quality."""
        return _measured(self.model)

    def __str__(self) -> str:
        return f"{self.precision} ({self.reason})"


def load_at_precision(name: str | Path, wanted: str, *, offline: bool = False) -> AtPrecision:
    """A model in a lower precision, if it passes the quantization check on the sample text.

    Args:
        wanted: fp32, bf16 or int8; `auto` tries the precisions that are faster than float32 on this
            machine, the fastest first.

    Raises:
        RecipeError: an unknown precision.
        ModelError: in the requested precision the model changes by more than one percent, or this
            machine does not support it.
    """
    if wanted not in PRECISIONS:
        raise RecipeError(f"The precision is {wanted}; choose from {', '.join(PRECISIONS)}.")
    if wanted == "int8" and not has_int8():
        raise ModelError(
            "This machine does not multiply int8 matrices exactly; use --precision bf16 or fp32."
        )
    folder = resolve_folder(str(name), offline=offline)
    model = load(folder)
    if wanted == "fp32":
        return AtPrecision(model, "fp32")
    times, is_causal = times_of(model.model), isinstance(model, CausalLM)
    rejected = [] if has_int8() else ["int8 is not exact on this machine"]
    tried: list[Precision] = [cast(Precision, wanted)]
    if wanted == "auto":
        tried = precisions(times, is_causal=is_causal)
    for precision in tried:
        speed = _speed_text(speedups(times, precision))
        is_faster = is_faster_than_float32(times, precision, is_causal=is_causal)
        if wanted == "auto" and not is_faster:
            rejected.append(f"{precision} {speed}")
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
                f"sample text; {ALLOWED:.0%} is allowed. Use --precision fp32."
            )
        rejected.append(f"{precision} {quality}")
        model = load(folder)
    return AtPrecision(model, "fp32", reason=f"rejected: {'; '.join(rejected)}")


def _speed_text(found: Mapping[int, float] | None) -> str:
    if found is None:
        return "far slower than float32"
    return f"{found[1]:.1f}x float32 at 1 row, {found[64]:.1f}x at 64 rows"


def _measured(model: Any) -> str:
    return "outputs" if isinstance(model, TaskModel) else "perplexity"


def _measure(model: Any) -> Callable[[Any], float]:
    """Measures a model; returns a function that gives the change of another one."""
    if isinstance(model, TaskModel):
        outputs = _outputs(model)
        return lambda other: _distance(outputs, _outputs(other))
    loss = _causal_loss if isinstance(model, CausalLM) else _masked_loss
    before = loss(model)
    return lambda other: math.expm1(loss(other) - before)


def blocks_of(model: Any) -> list[list[int]]:
    """Blocks of tokens of the sample text, with the special tokens of encoders."""
    length = min(BLOCK, model.context)
    special = not isinstance(model, CausalLM)
    blocks = (
        model.tokenizer(text, add_special_tokens=special, truncation=True, max_length=length)[
            "input_ids"
        ]
        for _, text in sample_documents()
    )
    return list(islice((block for block in blocks if len(block) == length), BLOCKS))


def _causal_loss(model: Any) -> float:
    """Mean negative log-likelihood per token, in nats."""
    slots = model.slots(1)
    losses = []
    for block in blocks_of(model):
        slot = slots.open()
        logits = slots.forward([Chunk(slot, block, len(block))])
        slots.close(slot)
        losses.append(F.cross_entropy(logits[:-1], torch.tensor(block[1:])))
    return float(torch.stack(losses).mean())


@torch.inference_mode()
def _masked_loss(model: Any) -> float:
    """The same for every seventh token, which is masked."""
    ids = torch.tensor(blocks_of(model))
    positions = torch.arange(MASK_EVERY, ids.shape[1] - 1, MASK_EVERY)
    mask = torch.tensor(model.tokenizer.mask_token_id)
    logits = model.model(input_ids=ids.index_fill(1, positions, mask)).logits[:, positions]
    return float(F.cross_entropy(logits.float().flatten(0, 1), ids[:, positions].flatten()))


@torch.inference_mode()
def _outputs(model: Any) -> dict[str, Tensor]:
    """The model's outputs for the sample text, by transformers' names."""
    found = model.model(input_ids=torch.tensor(blocks_of(model)))
    return {name: found[name].float() for name in OUTPUTS if name in found}


def _distance(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    return max(_moved(name, before[name], after[name]) for name in before)


def _moved(name: str, old: Tensor, new: Tensor) -> float:
    if name == "last_hidden_state" or old.shape[-1] == 1:
        return float((new - old).square().sum() / old.square().sum())
    p, q = old.log_softmax(-1), new.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())

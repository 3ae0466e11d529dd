"""A model in a lower precision: faster where memory bandwidth is the limit.

bf16: all weights, keys and values. int8: the weights of matrices, with one scale per output;
activations are quantized with one scale per row, so a row's result is the same to the bit whatever
rows are in the batch (one scale for all rows, as in PyTorch's dynamic quantization, would let
requests affect each other). Products are accumulated in 32 bits; norms, attention, keys and values
stay float32.

PyTorch's int8 operators are called in one place, `Int8Linear`: FBGEMM's, and for many rows oneDNN's
if it was measured to be faster. Rounding and scaling are the same in both, so a row's result does
not depend on the choice.

The quantization check: a lower precision is used only if it is faster here and keeps the quality of
this model. Both are measured before the model is used.

Speed: products with the model's matrices, of one row and of many (`stillhouse.kernels`). A
precision that is slower than float32 at either, or no faster, is rejected.
Quality: the perplexity of a language model; for a model with the head of a task, how far its
outputs move: KL(float32 || lower precision) of probabilities, in nats, and the relative squared
error of embeddings and values.

Axes: N rows, K inputs, M outputs.
"""

import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from stillhouse.data.sources.sample import sample_documents
from stillhouse.errors import ModelError, RecipeError
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.kv_cache import Chunk
from stillhouse.inference.load import CPU, load
from stillhouse.inference.task_model import TaskModel
from stillhouse.kernels import (
    BFLOAT16,
    FASTER,
    FLOAT32,
    ROWS,
    Kernel,
    KernelTimes,
    Shape,
    kernel_times,
)
from stillhouse.models.hub import resolve_folder
from stillhouse.wording import counted

Precision = Literal["fp32", "bf16", "int8"]
BYTES_PER_WEIGHT = {"fp32": 4, "bf16": 2, "int8": 1}
LARGEST = 127
ONEDNN = "int8, oneDNN"
PART = 256  # outputs
ALLOWED = 0.01  # relative change of the perplexity, or of the outputs
PRECISIONS = ("auto", "fp32", "bf16", "int8")
BLOCKS, BLOCK = 2, 256  # of the sample text, in tokens
MASK_EVERY = 7
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")


class Int8Linear(nn.Module):
    """inputs @ weight.T + bias, with weight and inputs quantized to int8."""

    def __init__(
        self,
        weight: Float[Tensor, "M K"],
        bias: Float[Tensor, " M"] | None,
        *,
        onednn_rows: int | None = None,
    ) -> None:
        """Args: onednn_rows: Number of rows from which oneDNN is used; by default never."""
        super().__init__()
        quantized, scale = _quantized(weight)
        self._bias = torch.zeros(len(weight)) if bias is None else bias.clone()
        self._zeros = torch.zeros(len(weight), dtype=torch.long)
        self._onednn_rows = math.inf if onednn_rows is None else onednn_rows
        if onednn_rows is not None:
            self._offset = torch.tensor(float(LARGEST))
            # FBGEMM's scale of the sums, independent of oneDNN's order of operations.
            self._scale = scale * torch.tensor(1 / LARGEST)
            self._onednn_weight = torch.ops.onednn.qlinear_prepack(quantized, None)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of deprecation
            tensor = torch._make_per_channel_quantized_tensor(  # pyright: ignore[reportPrivateImportUsage]
                quantized, scale.double(), self._zeros, 0
            )
        self._fbgemm_weight = torch.ops.quantized.linear_prepack(tensor, None)
        # The operator itself: the dispatch around it takes half as long as a layer norm.
        fbgemm = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        self._fbgemm = fbgemm._op

    def forward(self, inputs: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch M"]:
        # A row of zeros gives arbitrary numbers, multiplied by its scale, zero.
        largest = inputs.abs().amax(-1, keepdim=True)
        parts = inputs / largest
        if math.prod(parts.shape[:-1]) < self._onednn_rows:
            product = self._fbgemm(parts, 1 / LARGEST, LARGEST, self._fbgemm_weight)
        else:
            # FBGEMM's rounding: the offset is added in one operation with the product.
            torch.add(self._offset, parts, alpha=LARGEST, out=parts)
            rounded = parts.round_().sub_(LARGEST).to(torch.int8)
            product = torch.ops.onednn.qlinear_pointwise(
                rounded, 1.0, 0, self._onednn_weight, self._scale, self._zeros,
                None, 1.0, 0, torch.float32, "none", [], "",
            )  # fmt: skip
        return torch.addcmul(self._bias, product, largest)


def _quantized(weight: Float[Tensor, "M K"]) -> tuple[Int8[Tensor, "M K"], Float[Tensor, " M"]]:
    """The weight in int8, and the scale of each output. In parts, so that intermediate results
    stay in the CPU's cache."""
    whole = torch.empty(weight.shape, dtype=torch.int8)
    scales = []
    for part, quantized in zip(weight.split(PART), whole.split(PART), strict=True):
        smallest = torch.finfo(torch.float32).tiny
        scale = part.abs().amax(1, keepdim=True).clamp(min=smallest) / LARGEST
        quantized.copy_((part / scale).round_())
        scales.append(scale[:, 0])
    return whole, torch.cat(scales)


@functools.cache
def has_int8() -> bool:
    """Whether int8 products are exact on this machine, tested with the largest sums. (Without VNNI,
    FBGEMM adds pairs of products in 16 bits, which overflow.)"""
    num_inputs = 64
    try:
        product = Int8Linear(torch.ones(16, num_inputs), None)(torch.ones(2, num_inputs))
    except (AttributeError, RuntimeError):  # the operator is missing in this PyTorch or on this CPU
        return False
    return bool((product - num_inputs).abs().max() < num_inputs / 1000)


def kernels() -> dict[str, Kernel]:
    """The available kernels by name: a precision, or int8 by oneDNN."""
    found = {"fp32": FLOAT32, "bf16": BFLOAT16}
    if has_int8():
        found["int8"] = Kernel(Int8Linear)
        by_onednn = functools.partial(Int8Linear, onednn_rows=1)
        found[ONEDNN] = Kernel(by_onednn, same_bits_as="int8")
    return found


def times_of(model: PreTrainedModel) -> KernelTimes:
    """Seconds of a pass over the model's matrices by each kernel, on this machine."""
    found = Counter(
        (*_weight_of(module).shape, isinstance(module, Conv1D)) for _, module in _matrices(model)
    )
    shapes = [
        Shape(inputs, outputs, is_transposed, count)
        for (outputs, inputs, is_transposed), count in found.items()
    ]
    return kernel_times(shapes, kernels())


def onednn_rows(times: KernelTimes) -> int | None:
    """The number of rows from which oneDNN's int8 product is faster than FBGEMM's, if any."""
    if ONEDNN not in times.seconds or "int8" not in times.seconds:
        return None
    speedups = times.speedups(ONEDNN, "int8")
    faster = list(takewhile(lambda rows: speedups[rows] >= FASTER, reversed(ROWS)))
    return faster[-1] if faster else None


def speedups(times: KernelTimes, precision: Precision) -> dict[int, float] | None:
    """Speedup of a pass over float32, by rows; None for an excluded precision (see
    `stillhouse.kernels`)."""
    if not {precision, "fp32"} <= set(times.seconds):
        return None
    found = times.speedups(precision)
    if precision == "int8" and (first := onednn_rows(times)) is not None:
        by_onednn = times.speedups(ONEDNN)
        found = {rows: by_onednn[rows] if rows >= first else found[rows] for rows in found}
    return found


def precisions(times: KernelTimes, *, is_causal: bool) -> list[Precision]:
    """Precisions for `auto`, the fastest first. Generation batches requests, which would affect
    each other through the rounding of bfloat16 products, so bf16 is for encoders only."""
    possible: list[Precision] = ["int8"] if has_int8() else []
    if not is_causal:
        possible.append("bf16")
    main = _row_counts(is_causal)[0]
    return sorted(possible, key=lambda each: -(speedups(times, each) or {main: 0.0})[main])


def is_faster_than_float32(times: KernelTimes, precision: Precision, *, is_causal: bool) -> bool:
    """Whether it is faster at every number of rows that such a model multiplies."""
    found = speedups(times, precision)
    return found is not None and all(found[rows] >= FASTER for rows in _row_counts(is_causal))


def _row_counts(is_causal: bool) -> tuple[int, ...]:
    """Numbers of rows that a model multiplies, the most common first. Text is generated token by
    token; an encoder never has a single row."""
    return ROWS if is_causal else ROWS[:0:-1]


def _matrices(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """The matrices to quantize. An encoder's heads are small, or used at few positions."""
    for name, module in _body(model).named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


def _body(model: PreTrainedModel) -> nn.Module:
    return model if model.can_generate() else model.base_model


def _weight_of(module: nn.Linear | Conv1D) -> Float[Tensor, "M K"]:
    return module.weight if isinstance(module, nn.Linear) else module.weight.t()


@torch.no_grad()
def to_precision(
    model: PreTrainedModel, precision: Precision, *, times: KernelTimes | None = None
) -> None:
    """Convert the model's weights in place; it can no longer be trained or saved.

    Args:
        times: Measured times of the kernels; without them oneDNN is not used.
    """
    if precision == "bf16":
        model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    if precision != "int8":
        return
    first = None if times is None else onednn_rows(times)
    body = _body(model)
    for name, module in list(body.named_modules()):
        if isinstance(module, NewGELUActivation):  # the same in one operation, not eight
            body.set_submodule(name, nn.GELU(approximate="tanh"))
    for name, module in list(_matrices(model)):
        weight = _weight_of(module).detach()
        body.set_submodule(name, Int8Linear(weight, module.bias, onednn_rows=first))


@dataclass(frozen=True)
class AtPrecision:
    """A model and its precision.

    Attributes:
        change: Of what was measured, relative (0.01 is one percent).
        reason: Why the model has this precision, in one line; empty for float32 as requested.
        file: The GGUF file that runs as it is, by another engine.
    """

    model: Any  # a CausalLM, a MaskedLM or a TaskModel
    precision: str  # a Precision, or the type of a GGUF file's weights
    change: float = 0.0
    reason: str = ""
    file: Path | None = None

    @property
    def measured(self) -> str:
        """The measure of quality."""
        return _measured(self.model)

    @property
    def size_bytes(self) -> int:
        """Of the file, or of the weights in memory."""
        if self.file is not None:
            return self.file.stat().st_size
        return self.model.num_parameters * BYTES_PER_WEIGHT[self.precision]

    def __str__(self) -> str:
        return f"{self.precision} ({self.reason or 'as requested'})"


def load_at_precision(
    name: str | Path, wanted: str, *, offline: bool = False, device: torch.device = CPU
) -> AtPrecision:
    """A model in a lower precision, if it passes the quantization check on the sample text.

    Args:
        wanted: fp32, bf16 or int8; `auto` tries the precisions that are faster than float32 on this
            machine, the fastest first.
        device: Where the model runs; on a GPU in float32 only.

    Raises:
        RecipeError: an unknown precision, or a lower one on a GPU.
        ModelError: in the requested precision the model changes by more than one percent, or this
            machine does not support it.
    """
    _check_request(wanted, device)
    folder = resolve_folder(str(name), offline=offline)
    model = load(folder, device=device)
    if wanted == "fp32":
        return AtPrecision(model, "fp32")
    if device.type != "cpu":
        return AtPrecision(model, "fp32", reason="lower precisions are for CPUs")
    times, is_causal = times_of(model.model), isinstance(model, CausalLM)
    rejected = [] if has_int8() else ["int8 is not exact on this machine"]
    tried: list[Precision] = [cast(Precision, wanted)]
    if wanted == "auto":
        tried = precisions(times, is_causal=is_causal)
    for precision in tried:
        speed = _speed_text(speedups(times, precision), is_causal=is_causal)
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


def _check_request(wanted: str, device: torch.device) -> None:
    """Reject a precision that the device does not run, before a model is loaded."""
    if wanted not in PRECISIONS:
        raise RecipeError(f"The precision is {wanted}; choose from {', '.join(PRECISIONS)}.")
    if device.type != "cpu" and wanted not in ("auto", "fp32"):
        raise RecipeError(
            f"--precision {wanted} is for CPUs; a GPU runs models in fp32. Use --precision fp32, "
            "or --device cpu."
        )
    if wanted == "int8" and not has_int8():
        raise ModelError(
            "This machine does not multiply int8 matrices exactly; use --precision bf16 or fp32."
        )


def _speed_text(found: Mapping[int, float] | None, *, is_causal: bool) -> str:
    """The speeds that decide, at each number of rows that such a model multiplies."""
    if found is None:
        return "far slower than float32"
    rows = sorted(_row_counts(is_causal))
    speeds = ", ".join(f"{found[each]:.1f}x at {counted(each, 'row')}" for each in rows)
    return speeds.replace("x at", "x float32 at", 1)


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

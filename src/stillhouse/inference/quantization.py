"""A model in less precision: faster where memory is what it waits for.

bf16: all weights and keys and values. int8: the weights of matrices, each output's by its largest
value; what they multiply is brought to eight bits row by row, by each row's largest value, so that
a row's result is the same to the bit whatever rows are beside it (a scale for all rows at once,
as PyTorch's dynamic quantization has, would let requests change each other). Products are summed in
32 bits; norms, attention, keys and values stay float32.

PyTorch's int8 operators are called in one place, `Int8Linear`: FBGEMM's, and for many rows oneDNN's
where it was measured to be faster. What is rounded and what is done with the sums is the same, so a
row's result does not depend on which of them it was.

Axes: N rows, K inputs, M outputs.
"""

import functools
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

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

Precision = Literal["fp32", "bf16", "int8"]
LARGEST = 127
ONEDNN = "int8, oneDNN"
PART = 256  # outputs


class Int8Linear(nn.Module):
    """inputs @ weight.T + bias, the weight and each row of the inputs in eight bits."""

    def __init__(
        self,
        weight: Float[Tensor, "M K"],
        bias: Float[Tensor, " M"] | None,
        *,
        onednn_rows: int | None = None,
    ) -> None:
        """Args: onednn_rows: From so many rows on, oneDNN multiplies them; by default none."""
        super().__init__()
        quantized, scale = _quantized(weight)
        self._bias = torch.zeros(len(weight)) if bias is None else bias.clone()
        self._zeros = torch.zeros(len(weight), dtype=torch.long)
        self._onednn_rows = math.inf if onednn_rows is None else onednn_rows
        if onednn_rows is not None:
            self._offset = torch.tensor(float(LARGEST))
            # As FBGEMM scales its sums, and in whatever order oneDNN does.
            self._scale = scale * torch.tensor(1 / LARGEST)
            self._onednn_weight = torch.ops.onednn.qlinear_prepack(quantized, None)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of what is to come
            tensor = torch._make_per_channel_quantized_tensor(  # pyright: ignore[reportPrivateImportUsage]
                quantized, scale.double(), self._zeros, 0
            )
        self._fbgemm_weight = torch.ops.quantized.linear_prepack(tensor, None)
        # What it calls by itself: the way there is half as long as what a layer norm takes.
        fbgemm = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        self._fbgemm = fbgemm._op

    def forward(self, inputs: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch M"]:
        # A row of zeros becomes any numbers, times its largest value, which is zero.
        largest = inputs.abs().amax(-1, keepdim=True)
        parts = inputs / largest
        if math.prod(parts.shape[:-1]) < self._onednn_rows:
            product = self._fbgemm(parts, 1 / LARGEST, LARGEST, self._fbgemm_weight)
        else:
            # As FBGEMM rounds: the offset comes first, in one operation with the product.
            torch.add(self._offset, parts, alpha=LARGEST, out=parts)
            rounded = parts.round_().sub_(LARGEST).to(torch.int8)
            product = torch.ops.onednn.qlinear_pointwise(
                rounded, 1.0, 0, self._onednn_weight, self._scale, self._zeros,
                None, 1.0, 0, torch.float32, "none", [], "",
            )  # fmt: skip
        return torch.addcmul(self._bias, product, largest)


def _quantized(weight: Float[Tensor, "M K"]) -> tuple[Int8[Tensor, "M K"], Float[Tensor, " M"]]:
    """The weight in eight bits, and what one of them is worth in each output. A part at a time:
    what is made on the way stays in the processor's cache."""
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
    """Whether int8 products are exact here, by trying the largest sums. (Without instructions for
    it, FBGEMM adds pairs of products in 16 bits, which overflow.)"""
    num_inputs = 64
    try:
        product = Int8Linear(torch.ones(16, num_inputs), None)(torch.ones(2, num_inputs))
    except (AttributeError, RuntimeError):  # no such operator in this PyTorch, or on this processor
        return False
    return bool((product - num_inputs).abs().max() < num_inputs / 1000)


def kernels() -> dict[str, Kernel]:
    """The ways to multiply that there are here, by name: a precision, or int8 by oneDNN."""
    found = {"fp32": FLOAT32, "bf16": BFLOAT16}
    if has_int8():
        found["int8"] = Kernel(Int8Linear)
        by_onednn = functools.partial(Int8Linear, onednn_rows=1)
        found[ONEDNN] = Kernel(by_onednn, same_bits_as="int8")
    return found


def times_of(model: PreTrainedModel) -> KernelTimes:
    """Seconds of a pass over the model's matrices by each of them, on this machine."""
    found = Counter(
        (*_weight_of(module).shape, isinstance(module, Conv1D)) for _, module in _matrices(model)
    )
    shapes = [
        Shape(inputs, outputs, is_transposed, count)
        for (outputs, inputs, is_transposed), count in found.items()
    ]
    return kernel_times(shapes, kernels())


def onednn_rows(times: KernelTimes) -> int | None:
    """From how many rows on oneDNN's int8 product is faster than FBGEMM's; None if it is not."""
    if ONEDNN not in times.seconds or "int8" not in times.seconds:
        return None
    speedups = times.speedups(ONEDNN, "int8")
    first = None
    for rows in reversed(ROWS):
        if speedups[rows] < FASTER:
            break
        first = rows
    return first


def speedups(times: KernelTimes, precision: Precision) -> dict[int, float] | None:
    """How many times as fast as float32 a pass is, by rows; None for one that is out of the
    question (see `stillhouse.kernels`)."""
    if not {precision, "fp32"} <= set(times.seconds):
        return None
    found = times.speedups(precision)
    if precision == "int8" and (first := onednn_rows(times)) is not None:
        by_onednn = times.speedups(ONEDNN)
        found = {rows: by_onednn[rows] if rows >= first else found[rows] for rows in found}
    return found


def precisions(times: KernelTimes, *, is_causal: bool) -> list[Precision]:
    """Those that `auto` considers, the fastest first. Generation shares its steps among requests,
    which the rounding of bfloat16 products would let change each other: not there."""
    possible: list[Precision] = ["int8"] if has_int8() else []
    if not is_causal:
        possible.append("bf16")
    main = _places(is_causal)[0]
    return sorted(possible, key=lambda each: -(speedups(times, each) or {main: 0.0})[main])


def is_faster_than_float32(times: KernelTimes, precision: Precision, *, is_causal: bool) -> bool:
    """Whether it is, for every number of rows that such a model multiplies."""
    found = speedups(times, precision)
    return found is not None and all(found[rows] >= FASTER for rows in _places(is_causal))


def _places(is_causal: bool) -> tuple[int, ...]:
    """Numbers of rows that a model multiplies, the commonest first. Text is continued token by
    token; an encoder never reads a single one."""
    return ROWS if is_causal else ROWS[:0:-1]


def _matrices(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """The matrices that int8 is for. An encoder's heads are small, or read at few places."""
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
    """Change the model's weights in place; it can no longer be trained, nor saved.

    Args:
        times: What was measured of the kernels, where oneDNN may take part.
    """
    if precision == "bf16":
        model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    if precision != "int8":
        return
    first = None if times is None else onednn_rows(times)
    body = _body(model)
    for name, module in list(body.named_modules()):
        if isinstance(module, NewGELUActivation):  # the same function as one operation of eight
            body.set_submodule(name, nn.GELU(approximate="tanh"))
    for name, module in list(_matrices(model)):
        weight = _weight_of(module).detach()
        body.set_submodule(name, Int8Linear(weight, module.bias, onednn_rows=first))

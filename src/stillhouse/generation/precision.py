"""A model in less precision: faster where memory is what it waits for.

bf16: all weights and keys and values. int8: the weights of matrices, each output's by its largest
value; what they multiply is brought to eight bits row by row, by each row's largest value, so that
a row's result is the same to the bit whatever rows are beside it (a scale for all rows at once,
as PyTorch's dynamic quantization has, would let requests change each other). Products are summed in
32 bits; norms, attention, keys and values stay float32.

PyTorch's int8 operators are called in one place, `Int8Linear`: FBGEMM's for few rows, where it
reaches its sums sooner, oneDNN's for more. What is rounded and what is done with the sums is the
same, so a row's result does not depend on which of them it was.

Axes: N rows, K inputs, M outputs.
"""

import math
import warnings
from typing import Literal

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

Precision = Literal["fp32", "bf16", "int8"]
LARGEST = 127
FEW = 4  # rows
PART = 256  # outputs


class Int8Linear(nn.Module):
    """inputs @ weight.T + bias, the weight and each row of the inputs in eight bits."""

    def __init__(self, weight: Float[Tensor, "M K"], bias: Float[Tensor, " M"] | None) -> None:
        super().__init__()
        quantized, scale = _quantized(weight)
        self._bias = torch.zeros(len(weight)) if bias is None else bias.clone()
        self._offset = torch.tensor(float(LARGEST))
        self._zeros = torch.zeros(len(weight), dtype=torch.long)
        # As FBGEMM scales its sums, and in whatever order oneDNN does.
        self._scale = scale * torch.tensor(1 / LARGEST)
        self._packed = torch.ops.onednn.qlinear_prepack(quantized, None)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of what is to come
            tensor = torch._make_per_channel_quantized_tensor(  # pyright: ignore[reportPrivateImportUsage]
                quantized, scale.double(), self._zeros, 0
            )
        self._packed_for_few = torch.ops.quantized.linear_prepack(tensor, None)
        # What it calls by itself: the way there is half as long as what a layer norm takes.
        times_few = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        self._times_few = times_few._op

    def forward(self, inputs: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch M"]:
        # A row of zeros becomes any numbers, times its largest value, which is zero.
        largest = inputs.abs().amax(-1, keepdim=True)
        parts = inputs / largest
        if math.prod(parts.shape[:-1]) <= FEW:
            product = self._times_few(parts, 1 / LARGEST, LARGEST, self._packed_for_few)
        else:
            # As FBGEMM rounds: the offset comes first, in one operation with the product.
            torch.add(self._offset, parts, alpha=LARGEST, out=parts)
            rounded = parts.round_().sub_(LARGEST).to(torch.int8)
            product = torch.ops.onednn.qlinear_pointwise(
                rounded, 1.0, 0, self._packed, self._scale, self._zeros,
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


def has_bf16_tiles() -> bool:
    """Whether this processor has a unit for products of bfloat16 matrices."""
    return torch.cpu.get_capabilities().get("amx_bf16", False)


def has_int8() -> bool:
    """Whether this processor and this PyTorch multiply eight-bit matrices."""
    return torch.cpu.get_capabilities().get("avx512_vnni", False) and hasattr(
        torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32"
    )


@torch.no_grad()
def to_precision(model: PreTrainedModel, precision: Precision) -> None:
    """Change the model's weights in place; it can no longer be trained, nor saved."""
    if precision == "bf16":
        model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    if precision != "int8":
        return
    # An encoder's heads are small, or read at few places: they stay as they are.
    body = model if model.can_generate() else model.base_model
    for name, module in list(body.named_modules()):
        if isinstance(module, NewGELUActivation):  # the same function as one operation of eight
            body.set_submodule(name, nn.GELU(approximate="tanh"))
        if isinstance(module, nn.Linear | Conv1D):
            weight = module.weight if isinstance(module, nn.Linear) else module.weight.t()
            body.set_submodule(name, Int8Linear(weight.detach(), module.bias))

"""Float32 matrix products of inference on a CPU, by the faster of two libraries.

PyTorch computes them by its BLAS (MKL), which uses the widest instructions of Intel's CPUs only;
oneDNN, which PyTorch has too, uses them on all. On an AMD EPYC with AVX-512 oneDNN is twice as fast
(docs/results/experiments.md, "Multiple choice beside lm-eval"). Both round to float32, in another
order of sums. Which is faster is measured (`stillhouse.kernels`).

Axes: K inputs, M outputs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from stillhouse.kernels import FASTER, FLOAT32, Kernel, Shape, kernel_times

NAME = "fp32, oneDNN"
MIN_ROWS = 32  # for fewer, reading the weight takes much of the time
SIZES = 576, 1536  # K and M of a small model's feed-forward layer


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """Within this context products on a CPU are computed by oneDNN, where that is faster here."""
    if device.type != "cpu":
        return nullcontext()
    rows, columns = (_is_onednn_faster(is_transposed) for is_transposed in (False, True))
    return OneDNNProducts(rows=rows, columns=columns) if rows or columns else nullcontext()


class OneDNNProducts(TorchFunctionMode):
    """Within this context linear layers compute float32 products of several rows by oneDNN, on a
    CPU, without gradients and autocast.

    Args:
        rows, columns: Whether those do whose weight is stored M x K, and K x M (transformers'
            Conv1D).
    """

    def __init__(self, *, rows: bool = True, columns: bool = True) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.rows and func is F.linear and args and _is_for_onednn(args[0]):
            return _linear(*args, **kwargs)
        if self.columns and func is torch.addmm and len(args) == 3 and not kwargs:  # Conv1D
            bias, inputs, weight = args
            if bias.dim() == 1 and _is_for_onednn(inputs):
                return _linear(inputs, weight.t(), bias)
        return func(*args, **kwargs)


def _linear(
    input: Float[Tensor, "*rows K"],
    weight: Float[Tensor, "M K"],
    bias: Float[Tensor, " M"] | None = None,
) -> Float[Tensor, "*rows M"]:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def _is_for_onednn(inputs: Tensor) -> bool:
    here = inputs.device.type == "cpu" and inputs.dtype == torch.float32
    many = inputs.numel() >= MIN_ROWS * inputs.shape[-1]
    is_plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return here and many and is_plain


@lru_cache(2)
def _is_onednn_faster(is_transposed: bool) -> bool:
    if not (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    onednn = Kernel(lambda weight, bias: partial(_linear, weight=weight, bias=bias))
    shape = Shape(*SIZES, is_transposed, count=1)
    times = kernel_times([shape], {"fp32": FLOAT32, NAME: onednn}, (MIN_ROWS,))
    return NAME in times.seconds and times.speedups(NAME)[MIN_ROWS] >= FASTER

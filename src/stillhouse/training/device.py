"""Where training runs, in which precision, and what it does about memory."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import OptionError, ResourceError
from stillhouse.kernels import FASTER, Kernel, Product, Shape, kernel_times, one_thread

Precision = Literal["fp32", "bf16"]
DEVICE_VARIABLE = "STILLHOUSE_DEVICE"  # read by every process of a run
ROWS, SHAPE = 256, Shape(512, 512, is_transposed=False, count=1)  # of what is timed


def pick_device() -> torch.device:
    """The device of `--device`, or of the variable that it sets; by default the first CUDA device,
    or the CPU without one.

    Raises:
        OptionError: the device does not exist.
    """
    wanted = os.environ.get(DEVICE_VARIABLE, "auto")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise OptionError(f"--device is {wanted!r:.80}; it is auto, cpu or cuda.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            "--device is cuda, but PyTorch finds no CUDA device here. Leave --device out, or give "
            "cpu; `stillhouse doctor` says what this machine has."
        )
    return torch.device(wanted)


def is_device_given() -> bool:
    """Whether `--device`, or the variable that it sets, names a device."""
    return os.environ.get(DEVICE_VARIABLE, "auto") != "auto"


@functools.cache
def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones.

    A CPU must have instructions for it, and its kernels must use them: the matrix products of a
    training step are timed in both. (In one thread, so that the answer does not depend on other
    processes.)
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return False
    with one_thread():
        times = kernel_times([SHAPE], kernels(), [ROWS])
    return "bf16" in times.seconds and times.speedups("bf16")[ROWS] >= FASTER


def kernels() -> dict[str, Kernel]:
    """A training step's products with one matrix, by precision."""
    return {"fp32": Kernel(_step_products), "bf16": Kernel(_step_products, torch.bfloat16)}


def _step_products(weight: Float[Tensor, "M K"], bias: Float[Tensor, " M"]) -> Product:
    """Forward, gradient of the inputs, gradient of the weight; in the precision of the inputs."""
    weights = {dtype: weight.to(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def multiply(inputs: Float[Tensor, "N K"]) -> Float[Tensor, "N M"]:
        own = weights[inputs.dtype]
        outputs = torch.mm(inputs, own.t())
        torch.mm(outputs, own)
        torch.mm(outputs.t(), inputs)
        return outputs

    return multiply


def pick_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """The precision, with `auto` resolved for this device."""
    if wanted == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return wanted


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Autocast to bfloat16 if the precision is bf16; weights and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators of dropout. `torch.manual_seed` does the same, but takes milliseconds,
    since it records its caller for lazy CUDA initialization."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def micro_batch_sequences(
    wanted_tokens: int | Literal["auto"], device: torch.device, sequence_length: int
) -> int:
    """Sequences of one micro-batch; `auto` is small on a CPU, to stay within its caches."""
    if wanted_tokens == "auto":
        wanted_tokens = 16_384 if device.type == "cuda" else 2_048
    return max(1, wanted_tokens // sequence_length)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on a GPU."""
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True  # PyTorch has no exception type for CPU memory
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def out_of_memory(
    sequences: int, sequence_length: int, section: str = "distillation"
) -> ResourceError:
    """The error of a micro-batch that does not fit; `section` of the recipe has its settings."""
    return ResourceError(
        f"Out of memory in a micro-batch of {sequences} sequences of {sequence_length} "
        f"tokens. Lower {section}.micro_batch_tokens, set "
        f"{section}.activation_checkpointing, or take a smaller model."
    )


@contextmanager
def explained_memory_errors(
    sequences: int, sequence_length: int, section: str = "distillation"
) -> Iterator[None]:
    """Turn a failed allocation into one clear error.

    Raises:
        ResourceError: out of memory, on the CPU or on a GPU.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(sequences, sequence_length, section) from error

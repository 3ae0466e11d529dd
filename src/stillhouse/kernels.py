"""How fast this machine multiplies matrices in each precision: a short measurement.

A processor's flags do not tell: with the same flag, one library's int8 product is five times as
fast as float32's and another's, a reference implementation, several hundred times slower. So each
kernel is timed here, on matrices of the model's shapes, before it is used.

Contract: `kernel_times` takes a second at most, and is remembered in the user's cache folder for
the same processor, instruction sets, threads, PyTorch and shapes. A kernel that is far slower than
float32's, that does not finish in time, or whose bits are not those it must have, is left out.

The fastest of several interleaved calls counts, of those that no other process interrupted where
there are any. With several threads all wait for the one that was interrupted, so a measurement
beside other work is repeated in one thread. What was interrupted is not remembered.

Axes: N rows, K inputs, M outputs.
"""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stillhouse.machine import num_cores, processor_name
from stillhouse.run_folder import write_atomic

ROWS: tuple[int, ...] = (1, 8, 64)  # a token of one text, a step of several texts, a prompt
# Of a pass in all threads, and of one in a single thread: together less than a second.
PASS_SECONDS, ONE_THREAD_SECONDS = 0.35, 0.55
MAX_ROUNDS = 20
MAX_SHAPES = 4  # the largest by all that they hold
MAX_ELEMENTS = 2**21  # of one matrix; a larger one is measured by some of its outputs
MAX_INTERRUPTIONS = 30  # a second; a quiet machine has a handful
# Far slower than float32 is more than this many times as slow on a small matrix, where a kernel
# that is fast on large ones still has its fixed cost.
FAR_SLOWER, FIXED_SECONDS = 20, 2e-4
SMALL = (64, 256)  # M K
CACHE_FORMAT = 1
# Settings of libraries that hide instruction sets from them, or choose among them.
ISA_VARIABLES = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "FBGEMM_ENABLE_INSTRUCTIONS",
    "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE",
)  # fmt: skip

Product = Callable[[Float[Tensor, "N K"]], Float[Tensor, "N M"]]


@dataclass(frozen=True)
class Kernel:
    """A way to multiply rows by a matrix.

    Args:
        make: A weight (M x K) and a bias (M) to the product of rows with them.
        dtype: Of the rows.
        same_bits_as: The name of another kernel, whose results this one's must equal to the bit.
    """

    make: Callable[[Tensor, Tensor], Product]
    dtype: torch.dtype = torch.float32
    same_bits_as: str | None = None


FLOAT32 = Kernel(lambda weight, bias: partial(F.linear, weight=weight, bias=bias))
BFLOAT16 = Kernel(
    lambda weight, bias: partial(F.linear, weight=weight.bfloat16(), bias=bias.bfloat16()),
    torch.bfloat16,
)


@dataclass(frozen=True)
class Shape:
    """A matrix of a model, and how many of them it has. `is_transposed`: stored K x M."""

    num_inputs: int
    num_outputs: int
    is_transposed: bool
    count: int

    @property
    def num_elements(self) -> int:
        """Of all of them."""
        return self.num_inputs * self.num_outputs * self.count

    def sample(self, generator: torch.Generator) -> tuple[Float[Tensor, "M K"], float]:
        """Such a matrix with random entries, or some outputs of it; how many times its product
        has to be taken for those of all of them."""
        outputs = max(1, min(self.num_outputs, MAX_ELEMENTS // self.num_inputs))
        weight = _random(outputs, self.num_inputs, generator)
        times = self.count * self.num_outputs / outputs
        return (weight.t().contiguous().t() if self.is_transposed else weight), times


@dataclass(frozen=True)
class KernelTimes:
    """Seconds of one pass over a model's matrices, by kernel and by number of rows; kernels that
    were left out are absent. `is_undisturbed`: no interruption is in them."""

    seconds: Mapping[str, Mapping[int, float]]
    threads: int
    is_undisturbed: bool = True

    def speedups(self, kernel: str, reference: str = "fp32") -> dict[int, float]:
        """How many times as fast as the reference, by number of rows."""
        own, plain = self.seconds[kernel], self.seconds[reference]
        return {rows: plain[rows] / own[rows] for rows in own}


def kernel_times(shapes: Sequence[Shape], kernels: Mapping[str, Kernel]) -> KernelTimes:
    """The times of these kernels on this machine, from the cache where it has them."""
    key = _cache_key(shapes, kernels)
    path = _cache_path(key)
    if path is not None and (known := _read_cache(path, key)) is not None:
        return known
    found = measure_kernels(shapes, kernels)
    if path is not None and found.is_undisturbed and found.threads == torch.get_num_threads():
        _write_cache(path, key, found)
    return found


def measure_kernels(shapes: Sequence[Shape], kernels: Mapping[str, Kernel]) -> KernelTimes:
    """The times of these kernels, measured now; `fp32` must be among them."""
    assert "fp32" in kernels
    largest = sorted(shapes, key=lambda shape: shape.num_elements)[-MAX_SHAPES:]
    threads = torch.get_num_threads()
    with one_thread():
        usable = {
            name: kernel for name, kernel in kernels.items() if not _is_far_slower(kernel, kernels)
        }
        products = _products(largest, usable)
    if threads > 1:
        before, started = _interruptions(), time.perf_counter()
        best = _fastest(products, PASS_SECONDS, min_rounds=0)
        rate = (_interruptions() - before) / (time.perf_counter() - started)
        complete = [set(own) for own in best] == [set(each.calls) for each in products]
        if complete and rate <= MAX_INTERRUPTIONS:
            return KernelTimes(_in_all(products, best), threads)
    with one_thread():
        best = _fastest(products, ONE_THREAD_SECONDS, min_rounds=3)
    is_undisturbed = not any(each.interrupted for own in best for each in own.values())
    return KernelTimes(_in_all(products, best), 1, is_undisturbed)


class _Call(NamedTuple):
    """Those that were not interrupted are less than those that were."""

    interrupted: bool
    seconds: float


@dataclass(frozen=True)
class _Products:
    """One matrix and one number of rows: the product by each kernel."""

    rows: int
    times: float
    calls: Mapping[str, Callable[[], Tensor]]


def _products(shapes: Sequence[Shape], kernels: Mapping[str, Kernel]) -> list[_Products]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in shapes:
        weight, times = shape.sample(generator)
        bias = _random(1, len(weight), generator)[0]
        made = {name: kernel.make(weight, bias) for name, kernel in kernels.items()}
        for rows in ROWS:
            inputs = _random(rows, shape.num_inputs, generator)
            calls = {
                name: partial(product, inputs.to(kernels[name].dtype))
                for name, product in made.items()
            }
            unequal = [name for name in calls if not _has_its_bits(name, calls, kernels)]
            for name in unequal:
                del calls[name]
            found.append(_Products(rows, times, calls))
    return found


@torch.inference_mode()
def _has_its_bits(
    name: str, calls: Mapping[str, Callable[[], Tensor]], kernels: Mapping[str, Kernel]
) -> bool:
    other = kernels[name].same_bits_as
    return other is None or (other in calls and torch.equal(calls[name](), calls[other]()))


@torch.inference_mode()
def _fastest(
    products: Sequence[_Products], seconds: float, *, min_rounds: int
) -> list[dict[str, _Call]]:
    """The fastest call of each product by each kernel, in turns, for some seconds and
    at least so many rounds."""
    deadline = time.perf_counter() + seconds
    best: list[dict[str, _Call]] = [{} for _ in products]
    for number in range(MAX_ROUNDS):
        for product, own in zip(products, best, strict=True):
            for name, call in product.calls.items():
                before, began = _interruptions(), time.perf_counter()
                if number >= min_rounds and began > deadline:
                    return best
                call()
                took = time.perf_counter() - began
                new = _Call(_interruptions() > before, took)
                own[name] = min(own.get(name, new), new)
    return best


def _in_all(
    products: Sequence[_Products], best: Sequence[Mapping[str, _Call]]
) -> dict[str, dict[int, float]]:
    """Seconds by kernel and rows, of the kernels that every product was measured with."""
    names = [name for name in best[0] if all(name in own for own in best)] if best else []
    found = {name: dict.fromkeys(ROWS, 0.0) for name in names}
    for product, own in zip(products, best, strict=True):
        for name in names:
            found[name][product.rows] += product.times * own[name].seconds
    return found


@torch.inference_mode()
def _is_far_slower(kernel: Kernel, kernels: Mapping[str, Kernel]) -> bool:
    """Whether it is hopeless to measure a kernel on matrices of the model's size, where one call
    of a reference implementation takes seconds."""
    plain = kernels["fp32"]
    if kernel is plain:
        return False
    generator = torch.Generator().manual_seed(0)
    weight, bias = _random(*SMALL, generator), _random(1, SMALL[0], generator)[0]
    made = [each.make(weight, bias) for each in (kernel, plain)]
    for rows in ROWS:
        inputs = _random(rows, SMALL[1], generator)
        own, reference = (
            min(_seconds(product, inputs.to(each.dtype)) for _ in range(4))
            for product, each in zip(made, (kernel, plain), strict=True)
        )
        if own > FIXED_SECONDS + FAR_SLOWER * reference:
            return True
    return False


def _seconds(product: Product, inputs: Tensor) -> float:
    began = time.perf_counter()
    product(inputs)
    return time.perf_counter() - began


def _random(num_rows: int, num_columns: int, generator: torch.Generator) -> Tensor:
    """From a generator of its own: the global one, which seeds fix, does not move."""
    return torch.randn(num_rows, num_columns, generator=generator)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's operations in one thread, within."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _interruptions() -> int:
    """How often another process took the place of one of this one's threads."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _cache_key(shapes: Sequence[Shape], kernels: Mapping[str, Kernel]) -> dict[str, Any]:
    capabilities = torch.cpu.get_capabilities()
    return {
        "format": CACHE_FORMAT,
        "processor": processor_name(),
        "capabilities": sorted(name for name, has in capabilities.items() if has is True),
        "isa": [torch.backends.cpu.get_cpu_capability(), *map(os.environ.get, ISA_VARIABLES)],
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": sorted(kernels),
        "shapes": sorted(
            [each.num_inputs, each.num_outputs, each.is_transposed, each.count] for each in shapes
        ),
    }


def _cache_path(key: Mapping[str, Any]) -> Path | None:
    """Where these times are kept; None for a user without a folder (XDG Base Directory)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return base / "stillhouse" / "kernels" / f"{name}.json"


def _read_cache(path: Path, key: Mapping[str, Any]) -> KernelTimes | None:
    """None for a file that is not there, is damaged, or is another's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != json.loads(json.dumps(key)):
            return None
        seconds = {
            name: {rows: float(own[str(rows)]) for rows in ROWS}
            for name, own in content["seconds"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    times = [each for own in seconds.values() for each in own.values()]
    is_sound = "fp32" in seconds and all(0 < each < math.inf for each in times)
    return KernelTimes(seconds, torch.get_num_threads()) if is_sound else None


def _write_cache(path: Path, key: Mapping[str, Any], found: KernelTimes) -> None:
    content = json.dumps({"key": key, "seconds": found.seconds}, indent=1)
    with contextlib.suppress(OSError):  # without a cache it is measured each time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.encode())

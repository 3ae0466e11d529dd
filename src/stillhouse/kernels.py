"""A short benchmark of matrix products in each precision on this machine.

CPU flags are not enough: with the same flag, one library's int8 product is five times as fast as
float32, and another's, a reference implementation, several hundred times slower. So each kernel is
timed on matrices of the model's shapes before it is used.

Contract: `kernel_times` takes at most a second, and is cached in the user's cache folder for the
same CPU, instruction sets, library settings, threads, PyTorch and shapes. Kernels that are far
slower than float32, do not finish in time, or do not have the required bits are excluded.

The fastest of several interleaved calls counts: in wall time if another process interrupted none of
them, else in CPU time. With several threads, all wait for the interrupted one, so a measurement on
a busy machine is repeated in one thread. Interrupted measurements are not cached. Each kernel has
its own copy of a matrix, so none profits from a cache that another one has just filled.

Axes: N rows, K inputs, M outputs.
"""

import contextlib
import hashlib
import json
import os
import resource
import sys
import time
from collections import defaultdict
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
from stillhouse.runs.atomic import write_atomic
from stillhouse.runs.paths import user_cache

ROWS: tuple[int, ...] = (1, 8, 64)  # a token of one text, a step of several texts, a prompt
# Time limits of the pass in all threads, and of a second pass in a single thread.
PASS_SECONDS, TOTAL_SECONDS = 0.5, 0.8
MIN_ROUNDS, MAX_ROUNDS = 3, 20  # of a pass in a single thread; of any pass
WARM_ROUNDS, HOPELESS = 2, 5  # after these rounds, kernels this many times slower are dropped
MAX_SHAPES = 4  # the largest in total elements
MAX_ELEMENTS = 2**21  # of one matrix; of a larger one some outputs are measured
MAX_INTERRUPTIONS = 10  # of a pass in several threads; on a quiet machine there are a few
FASTER = 1.1  # speedup over the kernel that it would replace; less is a tie
# A kernel is far slower than float32 above this ratio. On a small matrix a kernel that is fast on
# large ones still has its fixed cost; on a large one its first call has to prepare.
FAR_SLOWER, FIXED_SECONDS, FIRST_SECONDS = 20, 2e-4, 0.02
SMALL = (64, 256)  # M K
SMALL_CALLS, SMALL_SECONDS = 4, 0.1  # the first call warms up; for all calls of a kernel
CACHE_FORMAT = 2
# Environment variables for instruction sets, precisions or how threads wait.
SETTINGS = ("ATEN_", "DNNL_", "FBGEMM_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_")

Product = Callable[[Float[Tensor, "N K"]], Float[Tensor, "N M"]]


@dataclass(frozen=True)
class Kernel:
    """An implementation of the product of rows with a matrix.

    Args:
        make: From a weight (M x K) and a bias (M) to the product of rows with them.
        dtype: Of the rows.
        same_bits_as: The name of another kernel whose results this one must equal to the bit.
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
    """A shape of matrices of a model, and their number. `is_transposed`: stored K x M."""

    num_inputs: int
    num_outputs: int
    is_transposed: bool
    count: int

    @property
    def num_elements(self) -> int:
        """Of all matrices of this shape."""
        return self.num_inputs * self.num_outputs * self.count

    def sample(self, generator: torch.Generator) -> tuple[Float[Tensor, "M K"], float]:
        """A random matrix of this shape, or some outputs of it; and the factor from its time to
        that of all matrices."""
        outputs = max(1, min(self.num_outputs, MAX_ELEMENTS // self.num_inputs))
        weight = _random(outputs, self.num_inputs, generator)
        times = self.count * self.num_outputs / outputs
        return (weight.t().contiguous().t() if self.is_transposed else weight), times


@dataclass(frozen=True)
class KernelTimes:
    """Seconds of one pass over a model's matrices, by kernel and number of rows, without excluded
    kernels. `is_undisturbed`: no call that counts was interrupted."""

    seconds: Mapping[str, Mapping[int, float]]
    threads: int
    is_undisturbed: bool = True

    def speedups(self, kernel: str, reference: str = "fp32") -> dict[int, float]:
        """Speedup over the reference, by number of rows."""
        own, plain = self.seconds[kernel], self.seconds[reference]
        return {rows: plain[rows] / own[rows] for rows in own}


def kernel_times(
    shapes: Sequence[Shape], kernels: Mapping[str, Kernel], rows: Sequence[int] = ROWS
) -> KernelTimes:
    """The times of these kernels on this machine, from the cache if it has them."""
    key = _cache_key(shapes, kernels, rows)
    path = _cache_path(key)
    if path is not None and (known := _read_cache(path, key)) is not None:
        return known
    found = measure_kernels(shapes, kernels, rows)
    if path is not None and found.is_undisturbed and found.threads == torch.get_num_threads():
        _write_cache(path, key, found)
    return found


def measure_kernels(
    shapes: Sequence[Shape], kernels: Mapping[str, Kernel], rows: Sequence[int] = ROWS
) -> KernelTimes:
    """Measure the times of these kernels; `fp32` must be among them."""
    assert "fp32" in kernels
    started, threads = time.perf_counter(), torch.get_num_threads()
    largest = sorted(shapes, key=lambda shape: shape.num_elements)[-MAX_SHAPES:]
    with one_thread():
        products = _products(largest, _without_far_slower(kernels, rows), rows)
    if threads > 1:
        before = _interruptions()
        best = _fastest(products, started + PASS_SECONDS, most_interruptions=MAX_INTERRUPTIONS)
        complete = [set(own) for own in best] == [set(each.calls) for each in products]
        if complete and _interruptions() - before <= MAX_INTERRUPTIONS and _is_undisturbed(best):
            return KernelTimes(_in_all(products, best), threads)
    with one_thread():
        best = _fastest(products, started + TOTAL_SECONDS, min_rounds=MIN_ROUNDS)
    return KernelTimes(_in_all(products, best), 1, _is_undisturbed(best))


class _Call(NamedTuple):
    """A timed call; uninterrupted calls sort before interrupted ones."""

    interrupted: bool
    seconds: float


def _timed(call: Callable[[], object]) -> _Call:
    """Time a call. An interrupted call counts the thread's CPU time, if the thread did all the
    work: there is one thread, and it did not wait."""
    before, waits = _interruptions(), _waits()
    ran, began = time.thread_time(), time.perf_counter()
    call()
    took = time.perf_counter() - began
    ran = time.thread_time() - ran
    if _interruptions() == before:
        return _Call(False, took)
    is_alone = torch.get_num_threads() == 1 and _waits() == waits
    return _Call(True, min(took, ran) if is_alone else took)


def _is_undisturbed(best: Sequence[Mapping[str, _Call]]) -> bool:
    return not any(each.interrupted for own in best for each in own.values())


@dataclass(frozen=True)
class _Products:
    """One matrix and number of rows: the product by each kernel, until it is excluded."""

    rows: int
    times: float
    calls: dict[str, Callable[[], Tensor]]


def _products(
    shapes: Sequence[Shape], kernels: Mapping[str, Kernel], rows: Sequence[int]
) -> list[_Products]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in shapes:
        weight, times = shape.sample(generator)
        bias = _random(1, len(weight), generator)[0]
        made = {name: kernel.make(weight.clone(), bias.clone()) for name, kernel in kernels.items()}
        for num_rows in rows:
            inputs = _random(num_rows, shape.num_inputs, generator)
            calls = {
                name: partial(product, inputs.to(kernels[name].dtype, copy=True))
                for name, product in made.items()
            }
            exact = {name: calls[name] for name in calls if _has_its_bits(name, calls, kernels)}
            found.append(_Products(num_rows, times, exact))
    return found


@torch.inference_mode()
def _has_its_bits(
    name: str, calls: Mapping[str, Callable[[], Tensor]], kernels: Mapping[str, Kernel]
) -> bool:
    other = kernels[name].same_bits_as
    return other is None or (other in calls and torch.equal(calls[name](), calls[other]()))


@torch.inference_mode()
def _fastest(
    products: Sequence[_Products],
    deadline: float,
    *,
    min_rounds: int = 0,
    most_interruptions: int = sys.maxsize,
) -> list[dict[str, _Call]]:
    """The fastest call of each product by each kernel, interleaved, until `deadline` but at least
    `min_rounds`; stops after `most_interruptions`. A kernel that is far slower than float32 is
    excluded after two calls: where it is emulated, each takes a tenth of a second."""
    last = _interruptions() + most_interruptions
    best: list[dict[str, _Call]] = [{} for _ in products]
    for number in range(MAX_ROUNDS):
        for product, own in zip(products, best, strict=True):
            names = list(product.calls)
            for name in names if number % 2 == 0 else reversed(names):
                is_late = number >= min_rounds and time.perf_counter() > deadline
                if is_late or _interruptions() > last:
                    return best
                if number >= WARM_ROUNDS and own[name].seconds > HOPELESS * own["fp32"].seconds:
                    continue
                new = _timed(product.calls[name])
                own[name] = min(own.get(name, new), new)
                # One slow call may be an accident.
                if _is_far_slower(own, name):
                    own[name] = min(own[name], _timed(product.calls[name]))
                if _is_far_slower(own, name):
                    for each, found in zip(products, best, strict=True):
                        each.calls.pop(name, None)
                        found.pop(name, None)
    return best


def _is_far_slower(own: Mapping[str, _Call], name: str) -> bool:
    """Whether the calls of one product show that a kernel is far slower than float32; in several
    threads those that were interrupted show nothing."""
    is_wall_time = own[name].interrupted and torch.get_num_threads() > 1
    if name == "fp32" or "fp32" not in own or is_wall_time:
        return False
    return own[name].seconds > max(FIRST_SECONDS, FAR_SLOWER * own["fp32"].seconds)


def _in_all(
    products: Sequence[_Products], best: Sequence[Mapping[str, _Call]]
) -> dict[str, dict[int, float]]:
    """Seconds by kernel and rows, for the kernels that were measured on every product."""
    names = [name for name in best[0] if all(name in own for own in best)] if best else []
    found: dict[str, dict[int, float]] = {name: defaultdict(float) for name in names}
    for product, own in zip(products, best, strict=True):
        for name in names:
            found[name][product.rows] += product.times * own[name].seconds
    return {name: dict(own) for name, own in found.items()}


@torch.inference_mode()
def _without_far_slower(kernels: Mapping[str, Kernel], rows: Sequence[int]) -> dict[str, Kernel]:
    """Without the kernels that are hopeless on matrices of the model's size, where one call of a
    reference implementation takes seconds."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = _random(*SMALL, generator), _random(1, SMALL[0], generator)[0]
    inputs = [_random(num_rows, SMALL[1], generator) for num_rows in rows]
    plain = kernels["fp32"].make(weight, bias)
    limits = [
        FIXED_SECONDS
        + FAR_SLOWER * min(_timed(partial(plain, each)) for _ in range(SMALL_CALLS)).seconds
        for each in inputs
    ]

    def is_far_slower(kernel: Kernel) -> bool:
        product, deadline = kernel.make(weight, bias), time.perf_counter() + SMALL_SECONDS
        for each, limit in zip(inputs, limits, strict=True):
            call = partial(product, each.to(kernel.dtype))
            for _ in range(SMALL_CALLS):
                if _timed(call).seconds <= limit:
                    break
                if time.perf_counter() > deadline:
                    return True
            else:
                return True
        return False

    return {
        name: kernel
        for name, kernel in kernels.items()
        if name == "fp32" or not is_far_slower(kernel)
    }


def _random(num_rows: int, num_columns: int, generator: torch.Generator) -> Tensor:
    """From a separate generator, so that the global random state does not change."""
    return torch.randn(num_rows, num_columns, generator=generator)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, PyTorch runs in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _interruptions() -> int:
    """Involuntary context switches of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _waits() -> int:
    """Voluntary context switches of this process: waits."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def _cache_key(
    shapes: Sequence[Shape], kernels: Mapping[str, Kernel], rows: Sequence[int]
) -> dict[str, Any]:
    capabilities = torch.cpu.get_capabilities()
    return {
        "format": CACHE_FORMAT,
        "processor": processor_name(),
        "capabilities": sorted(name for name, has in capabilities.items() if has is True),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "settings": sorted(each for each in os.environ.items() if each[0].startswith(SETTINGS)),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": sorted(kernels),
        "rows": sorted(rows),
        "shapes": sorted(
            [each.num_inputs, each.num_outputs, each.is_transposed, each.count] for each in shapes
        ),
    }


def _cache_path(key: Mapping[str, Any]) -> Path | None:
    """The cache file of these times; None for a user without a home."""
    cache = user_cache()
    return cache and cache / "kernels" / f"{_digest(_as_text(key))[:16]}.txt"


def _as_text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_cache(path: Path, key: Mapping[str, Any]) -> KernelTimes | None:
    """None if the file is missing, damaged, or has another key."""
    try:
        digest, _, text = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    if digest != _digest(text):
        return None
    content = json.loads(text)
    if _as_text(content["key"]) != _as_text(key):
        return None
    seconds = {
        name: {int(rows): took for rows, took in own.items()}
        for name, own in content["seconds"].items()
    }
    return KernelTimes(seconds, torch.get_num_threads())


def _write_cache(path: Path, key: Mapping[str, Any], found: KernelTimes) -> None:
    text = json.dumps({"key": key, "seconds": found.seconds}, indent=1)
    with contextlib.suppress(OSError):  # without a cache, every run measures
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{_digest(text)}\n{text}".encode())

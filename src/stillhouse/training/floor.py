"""The floor of training on this machine: the work of a token over the rates measured here.

No step can take less than its multiply-adds at the speed of a matrix product alone, nor less than
its bytes at the speed of a plain copy: the larger of the two times is the floor, and a training's
speed is stated as its share of it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stillhouse.training.work import Work

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COPY_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}  # of one buffer: more than caches hold
ROWS_ON_A_PROCESSOR = 1024  # more of them take longer and are no faster
MEASURING_SECONDS = 0.1  # for each rate, beside the warm-up
MOST_REPEATS = 50
Clock = Callable[[], float]


@dataclass(frozen=True)
class Rates:
    """What a device reaches at most: multiply-adds of a matrix product, bytes read and written."""

    multiply_adds_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Floor:
    """What training needs for a token, and what the device gives."""

    work: Work
    rates: Rates

    @property
    def tokens_per_second(self) -> float:
        """About the speed that training on this device cannot exceed: rates are measured."""
        multiplying = sum(self.work.multiply_adds.values()) / self.rates.multiply_adds_per_second
        moving = sum(self.work.bytes_moved.values()) / self.rates.bytes_per_second
        return 1 / max(multiplying, moving)

    def share(self, tokens_per_second: float) -> float:
        """How near a measured speed is to the floor: 1 is perfect."""
        return tokens_per_second / self.tokens_per_second

    def facts(self, tokens_per_second: float) -> dict[str, float]:
        """What a manifest says of a finished training's speed."""
        return {
            "floor_tokens_per_second": self.tokens_per_second,
            "floor_share": self.share(tokens_per_second),
        }

    def __str__(self) -> str:
        multiply_adds = sum(self.work.multiply_adds.values())
        bytes_moved = sum(self.work.bytes_moved.values())
        return (
            f"a token needs {multiply_adds / 1e6:,.2f} M multiply-adds and moves "
            f"{bytes_moved / 1e3:,.2f} kB; measured here in {self.work.precision}: "
            f"{self.rates.multiply_adds_per_second / 1e9:,.1f} G multiply-adds/s and "
            f"{self.rates.bytes_per_second / 1e9:,.1f} GB/s; so the floor is "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )


def measure_floor(work: Work, device: torch.device) -> Floor:
    """The floor on this device, in the work's precision and this process's threads.

    Takes about half a second, and draws nothing from the global random generators.
    """
    return Floor(work, measure_rates(work.product, DTYPES[work.precision], device))


def measure_rates(
    product: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    clock: Clock = time.perf_counter,
) -> Rates:
    """The fastest of some repeats, each. On CUDA the device's own events are the clock."""
    return Rates(matmul_rate(product, dtype, device, clock=clock), copy_rate(device, clock=clock))


def matmul_rate(
    product: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    clock: Clock = time.perf_counter,
) -> float:
    """Multiply-adds per second of (rows x inner) @ (inner x columns)."""
    rows, inner, columns = product
    rows = min(rows, ROWS_ON_A_PROCESSOR) if device.type == "cpu" else rows
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(shape, device=device, generator=generator).to(dtype)
        for shape in ((rows, inner), (columns, inner))
    )
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    seconds = fastest_seconds(lambda: torch.mm(left, right.T, out=out), device, clock)
    return rows * inner * columns / seconds


def copy_rate(device: torch.device, *, clock: Clock = time.perf_counter) -> float:
    """Bytes per second, read and written, of a copy between two buffers that no cache holds."""
    size = COPY_BYTES[device.type]
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / fastest_seconds(lambda: target.copy_(source), device, clock)


def fastest_seconds(
    run: Callable[[], object],
    device: torch.device,
    clock: Clock = time.perf_counter,
    *,
    at_least: int = 1,
) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    run()
    seconds: list[float] = []
    while len(seconds) < at_least or (
        sum(seconds) < MEASURING_SECONDS and len(seconds) < MOST_REPEATS
    ):
        seconds.append(seconds_of(run, device, clock))
    return min(seconds)


def seconds_of(run: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds of one call, until the device is done with it."""
    if device.type != "cuda":
        started = clock()
        run()
        return clock() - started
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3

"""The roofline of training on this machine: the cost of a token over the rates measured here.

A token takes at least its FLOPs at the rate of a matrix product, and at least its bytes at the rate
of a copy: the larger of the two times is the roofline (Williams, Waterman and Patterson 2009,
section 3). A training's speed is stated as its model FLOPs utilization (MFU): FLOPs per second over
the rate of a matrix product (Chowdhery et al. 2022, appendix B).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stillhouse.training.cost import StepCost

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COPY_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}  # of one buffer, larger than caches
ROWS_ON_A_PROCESSOR = 1024  # more of them take longer and are no faster
MEASURING_SECONDS = 0.1  # for each rate, beside the warm-up
MOST_REPEATS = 50
Clock = Callable[[], float]


@dataclass(frozen=True)
class Rates:
    """Measured peaks of a device: FLOP/s of a matrix product, bytes/s read and written."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Roofline:
    """The cost of a token, and the peak rates of the device."""

    cost: StepCost
    rates: Rates

    @property
    def tokens_per_second(self) -> float:
        """The highest speed that the measured rates allow."""
        computing = self.cost.flops_per_token / self.rates.flops_per_second
        moving = sum(self.cost.bytes_moved.values()) / self.rates.bytes_per_second
        return 1 / max(computing, moving)

    def mfu(self, tokens_per_second: float) -> float:
        """Model FLOPs utilization of a measured speed, from 0 to 1."""
        return tokens_per_second * self.cost.flops_per_token / self.rates.flops_per_second

    def facts(self, tokens_per_second: float) -> dict[str, float]:
        """The speed of a finished training, for its manifest."""
        return {
            "roofline_tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu(tokens_per_second),
        }

    def __str__(self) -> str:
        return (
            f"{self.cost.flops_per_token / 1e6:,.2f} MFLOPs and "
            f"{sum(self.cost.bytes_moved.values()) / 1e3:,.2f} kB per token; peaks measured in "
            f"{self.cost.precision}: {self.rates.flops_per_second / 1e9:,.1f} GFLOP/s and "
            f"{self.rates.bytes_per_second / 1e9:,.1f} GB/s; roofline "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )


def measure_roofline(cost: StepCost, device: torch.device) -> Roofline:
    """The roofline on this device, in the precision of the cost and this process's threads.

    Takes about half a second, and draws nothing from the global random generators.
    """
    return Roofline(cost, measure_rates(cost.product, DTYPES[cost.precision], device))


def measure_rates(
    product: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    clock: Clock = time.perf_counter,
) -> Rates:
    """Both peak rates, each the fastest of several repeats; on CUDA timed by events."""
    return Rates(matmul_rate(product, dtype, device, clock=clock), copy_rate(device, clock=clock))


def matmul_rate(
    product: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    clock: Clock = time.perf_counter,
) -> float:
    """FLOP/s of (rows x inner) @ (inner x columns)."""
    rows, inner, columns = product
    rows = min(rows, ROWS_ON_A_PROCESSOR) if device.type == "cpu" else rows
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(shape, device=device, generator=generator).to(dtype)
        for shape in ((rows, inner), (columns, inner))
    )
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    seconds = fastest_seconds(lambda: torch.mm(left, right.T, out=out), device, clock)
    return 2 * rows * inner * columns / seconds


def copy_rate(device: torch.device, *, clock: Clock = time.perf_counter) -> float:
    """Bytes per second, read and written, of a copy between two buffers larger than any cache."""
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
    """Seconds of the fastest of several calls, after a warm-up."""
    run()
    seconds: list[float] = []
    while len(seconds) < at_least or (
        sum(seconds) < MEASURING_SECONDS and len(seconds) < MOST_REPEATS
    ):
        seconds.append(seconds_of(run, device, clock))
    return min(seconds)


def seconds_of(run: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds of one call, until the device has finished it."""
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

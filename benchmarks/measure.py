"""Measuring tools: interleaved timings, peak memory, the environment of every figure.

The models and steps to measure are defined elsewhere; this module is independent of distillation.
"""

import contextlib
import json
import multiprocessing
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from stillhouse.machine import describe_machine, library_versions, processor_name, source_commit
from stillhouse.training.cost import seconds_of

CPU = torch.device("cpu")
Step = Callable[[], None]
Clock = Literal["wall", "cpu"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Given = ParamSpec("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory of a process: that of its models, and the peak of a step above it."""

    models_bytes: int
    step_bytes: int


def environment() -> dict[str, Any]:
    """What is recorded with every figure: the commit, the versions, the machine."""
    return {
        "commit": source_commit(),
        "versions": library_versions(),
        "machine": {**describe_machine(), "instruction_set": instruction_set()},
    }


def instruction_set() -> str:
    """The best instruction set of this CPU for lower precision products."""
    has = torch.cpu.get_capabilities()
    names = {"amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx512_f": "AVX512", "avx2": "AVX2"}
    return next((name for flag, name in names.items() if has.get(flag)), platform.machine())


def cpu_kind() -> str:
    """The kind of CPU, for the name of a file of results: `amd-epyc-avx512-vnni`."""
    name = re.sub(r"\(\w+\)|\bprocessor\b|\bcpu\b|@.*", "", processor_name().lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {instruction_set()}".lower()).strip("-")


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of results, in a folder that is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def interleaved_seconds(
    steps: Mapping[str, Step],
    *,
    repeats: int,
    clock: Clock = "wall",
    device: torch.device = CPU,
) -> dict[str, list[float]]:
    """Seconds of each step after a warm-up, alternating (A B A B), so that other load affects all
    alike.

    CPU time is what this process itself used. It is steadier under other load, and meaningful with
    one thread only, since several wait for each other. On CUDA the device's events measure time.
    """
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(seconds_of(step, device, CLOCKS[clock]))
    return seconds


def seconds_in_turns(
    prepare: Mapping[str, Callable[[], Step]], *, repeats: int, clock: Clock = "wall"
) -> dict[str, list[float]]:
    """Seconds of each step after a warm-up, each in a separate process, alternating.

    Effects of one step on its process, such as memory allocation, do not reach the others. All
    processes but one wait.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Connection, BaseProcess]] = {}
    try:
        for name, make in prepare.items():
            here, there = context.Pipe()
            arguments = (there, make, clock, torch.get_num_threads())
            process = context.Process(target=_take_turns, args=arguments, daemon=True)
            process.start()
            there.close()
            workers[name] = here, process
            here.recv()
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(repeats):
            for name, (connection, _process) in workers.items():
                connection.send(None)
                seconds[name].append(connection.recv())
        return seconds
    finally:
        for connection, process in workers.values():
            connection.close()
            process.join()


def _take_turns(
    turns: Connection, prepare: Callable[[], Step], clock: Clock, num_threads: int
) -> None:
    """Prepare a step, run it once, then at each request; ends when the other side does."""
    torch.set_num_threads(num_threads)
    step = prepare()
    step()
    turns.send(None)
    with contextlib.suppress(EOFError):
        while True:
            turns.recv()
            turns.send(seconds_of(step, CPU, CLOCKS[clock]))


def in_fresh_process(
    function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
) -> Result:
    """The function's result from a new process, which inherits no memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args, kwargs)


def peak_memory(prepare: Callable[[], Step], *, repeats: int = 1) -> PeakMemory:
    """Memory of the models that `prepare` makes, and of its step; call it in a fresh process.

    The first step is excluded from the peak, because it compiles. What it leaves behind (the
    optimizer state) counts.
    """
    step = prepare()
    models = _status_bytes("VmRSS")
    step()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    for _ in range(repeats):
        step()
    return PeakMemory(models, _status_bytes("VmHWM") - models)


def available_bytes() -> int:
    """Memory that the machine can give to a process without swapping."""
    return _kernel_bytes("/proc/meminfo", "MemAvailable")


def _status_bytes(key: str) -> int:
    """A line of this process's status. (`ru_maxrss` would start with the parent's peak.)"""
    return _kernel_bytes("/proc/self/status", key)


def _kernel_bytes(file: str, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path(file).read_text(), re.MULTILINE)
    assert found, key
    return 1024 * int(found.group(1))


def relative_error(found: Tensor, expected: Tensor, *, floor: float = 0.0) -> float:
    """Largest difference, as a share of the expected tensor's largest entry (at least `floor`)."""
    largest = max(float(expected.abs().max()), floor)
    return float((found - expected).abs().max()) / largest

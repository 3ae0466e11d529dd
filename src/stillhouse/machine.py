"""What is recorded with every measurement: machine, library versions, commit."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIBRARIES = (
    "stillhouse", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow",
    "trafilatura", "py3langid", "seqeval", "sacrebleu", "rouge-score", "lm-eval",
    "ctranslate2", "gguf", "onnxruntime", "xllamacpp",
)  # fmt: skip


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect results."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


@functools.cache
def source_commit() -> str | None:
    """The commit of the source tree, with "+changes" if it is modified; None if Stillhouse was
    installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch"]
    try:
        status = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    first, *others = status.stdout.splitlines()
    commit = first.removeprefix("# branch.oid ")
    has_changes = any(not line.startswith("#") for line in others)
    return None if commit == "(initial)" else commit + ("+changes" if has_changes else "")


@functools.cache
def processor_name() -> str:
    """The CPU's model name from the operating system."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextlib.contextmanager
def sharing_cores(every_seconds: float = 2.0) -> Iterator[None]:
    """Inside, waiting OpenMP threads sleep instead of spin while other processes use the same
    cores: spinning takes time from the thread that the others wait for. On idle cores they spin,
    which is faster (docs/results/experiments.md, "Training beside other work").

    The user's own OpenMP settings take precedence.
    """
    if any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        yield
        return
    import torch  # noqa: F401 - two threads importing it at once could see it half loaded

    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended, every_seconds), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(ended: threading.Event, every_seconds: float) -> None:
    import torch

    while not ended.is_set():
        with contextlib.ExitStack() as stack:
            if cores_are_short(cores_of_others(ended, every_seconds), torch.get_num_threads()):
                stack.enter_context(openmp_threads_sleep())
                while not ended.is_set() and cores_are_short(
                    cores_of_others(ended, every_seconds), torch.get_num_threads()
                ):
                    pass


def cores_are_short(others: float, threads: int) -> bool:
    """Whether these threads and the cores used by other processes exceed the machine's cores."""
    return others + threads > (os.cpu_count() or 1) + BUSY_CORES


@contextlib.contextmanager
def openmp_threads_sleep() -> Iterator[None]:
    """Inside, waiting OpenMP threads sleep almost at once.

    libgomp reads its settings only when it is loaded, but spins 100 iterations instead of 300,000
    while it manages more threads than cores. Idle thread pools add such threads. Each parallel
    region keeps its number of threads, so results are the same to the bit.
    """
    import torch

    threads = torch.get_num_threads()
    num_pools = 0 if threads == 1 else max(0, num_cores() - threads) // (threads - 1) + 1
    ended, ready = threading.Event(), threading.Barrier(num_pools + 1)

    def hold_pool() -> None:
        torch.zeros(POOL_ELEMENTS).add_(1)  # the first parallel region makes the pool
        ready.wait()
        ended.wait()

    holders = [threading.Thread(target=hold_pool, daemon=True) for _ in range(num_pools)]
    for each in holders:
        each.start()
    ready.wait()
    try:
        yield
    finally:
        ended.set()
        for each in holders:
            each.join()


BUSY_CORES = 0.5
POOL_ELEMENTS = 2**20  # enough for an operation in all threads


def cores_of_others(ended: threading.Event, seconds: float) -> float:
    """Cores that other processes use, measured for some seconds or until `ended`; 0 if the system
    does not report it."""
    before, own, began = _core_seconds(), time.process_time(), time.perf_counter()
    ended.wait(seconds)
    after, took = _core_seconds(), time.perf_counter() - began
    if before is None or after is None:
        return 0.0
    return max(0.0, after - before - (time.process_time() - own)) / took


def _core_seconds() -> float | None:
    """Busy seconds of all cores together since the system started."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq = map(int, fields[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def describe_machine() -> dict[str, Any]:
    """The machine as recorded in `evaluation.json`: CPU, cores, memory, GPUs, system."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor_name(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }

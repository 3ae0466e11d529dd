"""What stands beside every figure: the machine, the versions, the commit."""

import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

LIBRARIES = (
    "stillhouse", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow",
    "seqeval", "sacrebleu", "rouge-score", "lm-eval",
)  # fmt: skip


@functools.cache
def library_versions() -> dict[str, str]:
    """Python's version and those of the libraries that shape a result."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def source_commit() -> str | None:
    """The commit of the source tree Stillhouse runs from; None when it is installed from a
    wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
        status = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode != 0:
        return None
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


@functools.cache
def processor_name() -> str:
    """The processor's model name, as the operating system gives it."""
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


def yield_beside_other_work() -> None:
    """Let threads that wait for each other sleep rather than spin, where other processes use the
    same cores just now: spinning takes the time from the thread that is waited for. On idle cores
    they spin, which is faster (docs/experiments.md, "Training beside other work").

    To be called before torch is loaded, when OpenMP reads its settings; the user's own come first.
    """
    if busy_cores() > BUSY_CORES:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


BUSY_CORES = 0.5


def busy_cores(seconds: float = 0.1) -> float:
    """Cores in use on this machine while this process sleeps; 0 where the system does not say."""
    before = _core_seconds()
    time.sleep(seconds)
    after = _core_seconds()
    return 0.0 if before is None or after is None else max(0.0, after - before) / seconds


def _core_seconds() -> float | None:
    """Seconds that all cores together have worked since the system started."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq = map(int, fields[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def describe_machine() -> dict[str, Any]:
    """The machine as it stands in `evaluation.json`: processor, cores, memory, GPUs, system."""
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

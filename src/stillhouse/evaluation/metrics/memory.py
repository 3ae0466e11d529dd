"""Peak memory of one forward pass, in a fresh process for each model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stillhouse import units
from stillhouse.evaluation.metrics.base import Metric, Subjects

PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from stillhouse.evaluation.metrics.speed import run_forward
from stillhouse.models.load import load_model
from stillhouse.training.device import pick_device
family, model = load_model(Path(sys.argv[1]))
device = pick_device()
run_forward(family, model.to(device))
on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(torch.cuda.max_memory_allocated() if device.type == "cuda" else on_host)
"""


def measure(subjects: Subjects) -> dict[str, dict[str, Any]]:
    """Once for each configuration; None where speed and memory are not measured."""
    known = subjects.cache.memory
    for name, configuration in subjects.configurations.items():
        if subjects.speed and configuration not in known:
            subjects.reporter.say(f"{subjects.label}memory of {name}")
            known[configuration] = peak_memory_bytes(subjects.folders[name])
    return {
        name: {"peak_memory_bytes": known.get(configuration)}
        for name, configuration in subjects.configurations.items()
    }


def peak_memory_bytes(folder: Path) -> int | None:
    """Peak memory of a fresh process that loads the model and runs one forward pass.

    Resident memory of the process; on a GPU, what was allocated there.
    """
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    return json.loads(result.stdout) if result.returncode == 0 else None


METRICS = [
    Metric("memory", "peak_memory_bytes", "Peak memory", units.SIZE, measure, True, compared=True)
]

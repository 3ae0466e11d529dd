"""Parameters, and bytes of the weights on disk."""

from functools import partial
from typing import Any

from stillhouse import units
from stillhouse.evaluation.metrics.base import Metric, Subjects
from stillhouse.models.load import count_parameters


def measure(subjects: Subjects) -> dict[str, dict[str, Any]]:
    """Counted on the loaded model and its folder."""
    return {name: _size(subjects, name) for name in subjects.models}


def _size(subjects: Subjects, name: str) -> dict[str, Any]:
    folder = subjects.folders[name]
    total, body = count_parameters(subjects.models[name][1])
    return {
        "path": str(folder),
        "parameters": total,
        "body_parameters": body,
        "size_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    }


_size_metric = partial(Metric, "size", measure=measure, lower_is_better=True)
METRICS = [
    _size_metric("parameters", "Parameters", units.COUNT, short="params", compared=True),
    _size_metric("body_parameters", "Parameters without the head", units.COUNT),
    _size_metric("size_bytes", "Size on disk", units.SIZE, compared=True),
]

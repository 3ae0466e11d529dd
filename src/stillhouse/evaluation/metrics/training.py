"""What a model's training took, from the manifest of its folder."""

from functools import partial
from typing import Any

from stillhouse import units
from stillhouse.evaluation.metrics.base import Metric, Subjects
from stillhouse.runs.manifest import facts_of


def measure(subjects: Subjects) -> dict[str, dict[str, Any]]:
    """None for a model that was not trained in this run."""
    return {
        name: {"training": facts_of(folder).get("training")}
        for name, folder in subjects.folders.items()
    }


_training = partial(Metric, "training", measure=measure, missing="not trained here")
METRICS = [
    _training("training.tokens", "Training tokens", units.TOKENS, short="tokens"),
    _training("training.steps", "Training steps", units.COUNT),
    _training("training.seconds", "Training time", units.SECONDS, short="time"),
    _training("training.mfu", "Model FLOPs utilization (MFU)", units.SHARE),
]

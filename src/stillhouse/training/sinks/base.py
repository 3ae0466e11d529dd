"""What a sink is, and the training that it is opened for.

Contract: `metrics.jsonl` holds the truth, and a sink is a copy. A sink has each step once. A
training that resumes continues its run in the sink: steps that the sink already has are not sent
again (their losses are the same, since resuming is exact), and steps that it lacks are taken from
`metrics.jsonl`. A training that begins at step 1 is a new run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Values = Mapping[str, int | float]


@dataclass(frozen=True)
class SinkRun:
    """One training, as a sink sees it.

    Attributes:
        project: The run folder's name, which groups its trainings.
        name: Of the training, such as `student` or `seed-1/control`.
        metrics: Its `metrics.jsonl`, with the lines of `model`.
        store: The run folder, where a sink keeps its files.
        settings: The recipe's settings by dotted key.
        next_step: The first step that will be logged.
        last_written: The newest step that was ever logged to the sink, before a resume.
        known_id: The sink's name for this training where it continues one.
    """

    project: str
    name: str
    model: str
    metrics: Path
    store: Path
    settings: Mapping[str, Any]
    next_step: int
    last_written: int
    known_id: str | None = None


@runtime_checkable
class Sink(Protocol):
    """A tool that shows metrics. Its constructor takes a `SinkRun`.

    Attributes:
        identifier: The tool's name for this training; kept, and given again when it resumes.
        last_step: The newest step that the tool already has; 0 for none.
    """

    identifier: str
    last_step: int

    def log(self, lines: Sequence[tuple[int, Values]]) -> None:
        """Write the values of some steps, in order."""

    def close(self, *, completed: bool) -> None:
        """Write what is left; `completed` unless the training was interrupted."""

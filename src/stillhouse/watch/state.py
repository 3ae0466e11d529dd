"""What a run is doing, and how far its trainings are: its metrics.jsonl, progress.json, lock and
report -> a `RunState`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stillhouse.errors import OptionError
from stillhouse.runs.paths import RunFolder, is_locked
from stillhouse.training.metrics import read_metrics
from stillhouse.training.progress_file import read_progress

Status = Literal["not started", "running", "finished", "failed", "stopped", "not running"]

# In the order in which they are trained; models of tasks follow.
MODELS = ("teacher", "student", "control", "control_same_time")
STEPS_OF_A_SPEED = 20


@dataclass(frozen=True)
class Training:
    """One model of one seed.

    Attributes:
        seed: Of several seeds; None for one seed.
        lines: Of `metrics.jsonl`, in order.
        key: Of its loss: the language modeling loss, which controls have too, else the sum.
    """

    model: str
    seed: str | None
    lines: Sequence[Mapping[str, Any]]
    key: str

    @property
    def step(self) -> int:
        return self.lines[-1]["step"]

    @property
    def tokens(self) -> int:
        return self.lines[-1].get("tokens") or 0

    @property
    def losses(self) -> list[float | None]:
        """Of every step; None where it was not finite."""
        return [line.get(self.key) for line in self.lines]

    @property
    def tokens_per_second(self) -> float | None:
        """The mean over the last steps."""
        last = [line.get("tokens_per_second") for line in self.lines[-STEPS_OF_A_SPEED:]]
        known = [speed for speed in last if speed]
        return len(known) / sum(1 / speed for speed in known) if known else None


@dataclass(frozen=True)
class RunState:
    """A run, at one moment.

    Attributes:
        progress: What `progress.json` says: the stage, the steps of the training or measurement.
    """

    folder: Path
    status: Status
    progress: Mapping[str, Any]
    trainings: Sequence[Training]

    @property
    def is_over(self) -> bool:
        """Whether nothing will change until a command is given."""
        return self.status not in ("not started", "running")

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def sentence(self) -> str:
        """What the run is doing, or how it ended."""
        stage = self.progress.get("stage")
        if self.status == "not started":
            return f"There is no run in {self.folder} yet."
        if self.status == "running":
            return f"Stage {stage}." if stage else "Starting."
        if self.status == "finished":
            return f"Finished: {RunFolder.at(self.folder).report}"
        again = "The same command resumes."
        if self.status == "failed":
            return f"Stage {stage} ended: {self.progress['error']}"
        if self.status == "stopped":
            return f"Stage {stage} ended without a message: its process was killed. {again}"
        return f"No command runs here, and there is no report yet. {again}"


def read_state(folder: Path) -> RunState:
    """The state of a run; that of a folder which is not there yet has not started.

    Raises:
        OptionError: the path is a file.
    """
    if folder.is_file():
        raise OptionError(f"{folder} is a file. Give the folder of a run, such as runs/quickstart.")
    run = RunFolder.at(folder)
    found = read_progress(run.progress)
    trainings = [
        *_trainings(run.metrics, None),
        *(
            each
            for path in sorted(folder.glob("seed-*/metrics.jsonl"), key=_number)
            for each in _trainings(path, path.parent.name.removeprefix("seed-"))
        ),
    ]
    return RunState(folder, _status(run, found), found or {}, trainings)


def _status(run: RunFolder, progress: Mapping[str, Any] | None) -> Status:
    if not run.recipe.exists() and progress is None:
        return "not started"
    if is_locked(run):
        return "running"
    if progress is not None:
        return "failed" if "error" in progress else "stopped"
    return "finished" if run.report.exists() else "not running"


def _number(path: Path) -> int:
    found = re.search(r"\d+", path.parent.name)
    return int(found[0]) if found else 0


def _trainings(path: Path, seed: str | None) -> list[Training]:
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for line in read_metrics(path):
        by_model.setdefault(line["model"], []).append(line)
    known = {model: place for place, model in enumerate(MODELS)}
    found = sorted(by_model.items(), key=lambda item: (known.get(item[0], len(known)), item[0]))
    return [
        Training(
            model, seed, lines, "language_modeling" if "language_modeling" in lines[-1] else "loss"
        )
        for model, lines in found
    ]

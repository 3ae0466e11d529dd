"""The paths of a run, and its lock."""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import RunError
from stillhouse.runs.atomic import FULL, full_disk_error, unusable_path


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. `shared` is the run itself, or the parent of one seed's run."""

    path: Path
    shared: Path

    @classmethod
    def at(cls, path: Path) -> "RunFolder":
        return cls(path, path)

    def for_seed(self, seed: int) -> "RunFolder":
        """The folder of one of several seeds, with the shared corpus, tokens and teacher."""
        return RunFolder(self.path / f"seed-{seed}", self.path)

    def of_seeds(self, seeds: Sequence[int]) -> list["RunFolder"]:
        """The folder of each seed: the run itself where there is only one."""
        return [self] if len(seeds) == 1 else [self.for_seed(seed) for seed in seeds]

    def model(self, name: str) -> Path:
        """The folder of one model of a seed: student, control, control_same_time, student_init."""
        return self.path / name.replace("_", "-")

    @property
    def recipe(self) -> Path:
        return self.shared / "recipe.yaml"

    @property
    def corpus(self) -> Path:
        return self.shared / "corpus"

    @property
    def tokens(self) -> Path:
        return self.shared / "tokens"

    @property
    def teacher(self) -> Path:
        return self.shared / "teacher"

    @property
    def teacher_cache(self) -> Path:
        return self.shared / "teacher-cache"

    @property
    def student_init(self) -> Path:
        return self.path / "student-init"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def control_same_time(self) -> Path:
        return self.path / "control-same-time"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def finetuned(self, task: str) -> Path:
        """The folder of one task: its models and their scores."""
        return self.path / "finetuned" / task

    @property
    def task_data(self) -> Path:
        """Hub datasets of tasks, as JSON lines."""
        return self.shared / "task-data"

    def checkpoints(self, model: str) -> Path:
        """The checkpoints of one model (teacher, student, control)."""
        return self.path / "checkpoints" / model


@contextlib.contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Lock a run, so that two commands cannot write the same folder.

    Raises:
        RunError: another process holds the lock, or the folder cannot be created or written.
    """
    try:
        run.shared.mkdir(parents=True, exist_ok=True)
        lock = (run.shared / ".lock").open("w")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        if isinstance(error, OSError) and error.errno in FULL:
            raise full_disk_error(run.shared, error) from error
        raise unusable_path(run.shared, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{run.shared} is in use by another stillhouse process. Wait for it, or give "
                "another --run-dir."
            ) from error
        except OSError as error:
            raise unusable_path(run.shared, error) from error
        yield

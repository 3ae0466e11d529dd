"""The paths of a run, its lock, and the user's cache."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from stillhouse.errors import RunError
from stillhouse.runs.atomic import FULL, full_disk_error, unusable_path

DOCUMENTS = "documents.parquet"  # of each part of the cleaned text
TRIES = 3  # to lock a run


def part_folder_name(part: str, shard: str) -> str:
    """The folder of a shard of the cleaned text, which names its part of the text, if it has any;
    no name of a part has a period."""
    return f"part-{part}.{shard}" if part else f"part-{shard}"


class RunFolder:
    """Paths of one run, which are not changed. `shared` is the run itself, or the parent of one
    seed's run."""

    def __init__(self, path: Path, shared: Path) -> None:
        self.path = path
        self.shared = shared
        self.recipe = shared / "recipe.yaml"
        self.clean = shared / "clean"
        self.cleaning_report = shared / "cleaning.html"
        self.corpus = shared / "corpus"
        self.tokens = shared / "tokens"
        self.teacher = shared / "teacher"
        self.teacher_cache = shared / "teacher-cache"
        self.task_data = shared / "task-data"  # hub datasets of tasks, as JSON lines
        self.race = shared / "race.json"
        self.candidates = shared / "candidates"
        self.decoding_times = shared / "decoding-times.json"  # of this machine, by shape
        self.student_init = path / "student-init"
        self.student = path / "student"
        self.control = path / "control"
        self.control_same_time = path / "control-same-time"
        self.metrics = path / "metrics.jsonl"
        self.progress = shared / "progress.json"
        self.evaluation = path / "evaluation.json"
        self.report = path / "report.html"

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

    def finetuned(self, task: str) -> Path:
        """The folder of one task: its models and their scores."""
        return self.path / "finetuned" / task

    def candidate(self, name: str) -> "RunFolder":
        """The run of one candidate of a race, with the shared tokens, teacher and cache."""
        return RunFolder(self.candidates / name, self.shared)

    def checkpoints(self, model: str) -> Path:
        """The checkpoints of one model (teacher, student, control)."""
        return self.path / "checkpoints" / model


def user_cache() -> Path | None:
    """The folder for what can be recomputed; None for a user without a home.

    Source: XDG Base Directory Specification.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "stillhouse"


def is_locked(run: RunFolder) -> bool:
    """Whether a process runs stages of this run."""
    try:
        with (run.shared / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock(lock: TextIO) -> None:
    """Lock a file. Who asks whether it is locked holds it for a moment, so it is tried again."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.1)
    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
            _lock(lock)
        except BlockingIOError as error:
            raise RunError(
                f"{run.shared} is in use by another stillhouse process. Wait for it, or give "
                "another --run-dir."
            ) from error
        except OSError as error:
            raise unusable_path(run.shared, error) from error
        yield

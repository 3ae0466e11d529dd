"""`progress.json`: what a run is doing, for those who watch it.

It is there while stages run. After an error it stays, with the message; after a kill it stays too,
while the run's lock is free.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.training.progress import Reporter

SECONDS_BETWEEN_WRITES = 1.0


class ProgressFile:
    """A reporter that also writes what it is given to `progress.json`.

    A disk that is full, or a folder that cannot be written, is not its business: the stages say so.
    """

    def __init__(self, reporter: "Reporter", path: Path) -> None:
        self._reporter, self._path = reporter, path
        self._state: dict[str, Any] = {}
        self._first, self._started, self._written = 0, 0.0, 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Keep the file up to date while stages run; it stays where they fail."""
        try:
            yield
        except BaseException as error:
            self._write(error=str(error) or type(error).__name__)
            raise
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def begin(self, stage: str, seed: int | None) -> None:
        """A stage begins; `seed` is one of several seeds."""
        self._state = {}
        self._write(stage=stage, seed=seed)

    def say(self, message: str) -> None:
        self._reporter.say(message)
        self._write(message=message)

    def start(self, name: str, done: int, total: int) -> None:
        self._reporter.start(name, done, total)
        self._first, self._started = done, time.monotonic()
        self._write(name=name, step=done, total=total, seconds_left=None, values={})

    def step(self, step: int, values: dict[str, int | float]) -> None:
        self._reporter.step(step, values)
        now, done = time.monotonic(), step - self._first
        total = self._state.get("total", step)
        left = (now - self._started) / done * (total - step) if done else None
        shown = {key: values[key] for key in ("tokens_per_second",) if key in values}
        self._state |= {"step": step, "seconds_left": left, "values": shown}
        if now - self._written > SECONDS_BETWEEN_WRITES or step == total:
            self._write()

    def finish(self) -> None:
        self._reporter.finish()
        for key in ("name", "step", "total", "seconds_left", "values"):
            self._state.pop(key, None)
        self._write()

    def _write(self, **changes: object) -> None:
        self._state |= changes
        self._written = time.monotonic()
        temporary = self._path.with_name(f".{self._path.name}.tmp-{os.getpid()}")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(self._state), encoding="utf-8")
            temporary.replace(self._path)


def read_progress(path: Path) -> dict[str, Any] | None:
    """What the file says; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

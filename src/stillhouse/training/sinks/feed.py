"""Feeds the sinks of a training. None of them can stop or change it: one that fails is named once,
and is given no more.
"""

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Protocol, runtime_checkable

from stillhouse.training.sinks.base import SinkRun, Values
from stillhouse.training.sinks.registry import SINKS, open_sink

CLOSE_SECONDS = 60.0  # a sink that takes longer ends by itself

Say = Callable[[str], None]


@runtime_checkable
class Feed(Protocol):
    """A sink as a training uses it; its methods raise nothing, and do not wait for a server."""

    def log(self, step: int, values: Values) -> None: ...

    def close(self, *, completed: bool) -> None: ...


def open_feeds(names: Sequence[str], run: SinkRun, say: Say) -> list[Feed]:
    """The feeds of these sinks.

    Args:
        say: Shows the message of a sink that fails.
    """
    return [
        ProcessFeed(name, run, say) if SINKS[name].own_process else DirectFeed(name, run, say)
        for name in names
    ]


def failure(name: str, run: SinkRun, reason: object) -> str:
    """The message of a sink that fails."""
    return (
        f"{run.name}: metrics are no longer sent to {name} ({reason}); training continues, and "
        f"{run.metrics} has all of them"
    )


class DirectFeed:
    """A sink in this process."""

    def __init__(self, name: str, run: SinkRun, say: Say) -> None:
        self._name, self._run, self._say, self._sink = name, run, say, None
        try:
            self._sink = open_sink(name, run)
        except Exception as error:
            say(failure(name, run, error))

    def log(self, step: int, values: Values) -> None:
        if self._sink is not None:
            try:
                self._sink.log([(step, values)])
            except Exception as error:
                self._sink = None
                self._say(failure(self._name, self._run, error))

    def close(self, *, completed: bool) -> None:
        if self._sink is not None:
            try:
                self._sink.close(completed=completed)
            except Exception as error:
                self._say(failure(self._name, self._run, error))


class ProcessFeed:
    """A sink in a process of its own, which a thread writes to."""

    def __init__(self, name: str, run: SinkRun, say: Say) -> None:
        self._name, self._run, self._say = name, run, say
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._log = run.metrics.parent / "sinks" / run.model / f"{name}.log"
        self._thread = Thread(target=self._feed, daemon=True)
        self._thread.start()

    def log(self, step: int, values: Values) -> None:
        self._put({"step": step, "values": dict(values)})

    def close(self, *, completed: bool) -> None:
        self._put({"completed": completed})
        self._lines.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._say(f"{self._run.name}: {self._name} is still writing; it ends by itself")

    def _put(self, message: dict[str, object]) -> None:
        if self._thread.is_alive():  # Otherwise it has failed.
            self._lines.put(json.dumps(message) + "\n")

    def _feed(self) -> None:
        """Write every line to the process, and wait for its end."""
        try:
            reason = self._run_process()
        except OSError as error:
            reason = str(error)
        if reason:
            self._say(failure(self._name, self._run, f"{reason}; {self._log}"))

    def _run_process(self) -> str:
        """Returns why the process failed; empty where it did not."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        run, command = self._run, [sys.executable, "-m", "stillhouse.training.sinks.process"]
        places = {"metrics": str(run.metrics.resolve()), "store": str(run.store.resolve())}
        with (
            (run.store / f".{self._name}.lock").open("w") as lock,
            self._log.open("wb") as log,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the training
                pass_fds=[_locked(lock)],
            ) as process,
        ):
            first = {"sink": self._name, "lock": lock.fileno(), **asdict(run), **places}
            lock.close()
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(json.dumps(first) + "\n")
                for line in iter(self._lines.get, None):
                    pipe.write(line)
                    pipe.flush()
            code = process.wait()
        return _last_line(self._log) or f"exit code {code}" if code else ""


def _locked(file: IO[str]) -> int:
    """The descriptor of a sink's lock, which its process inherits. The lock is taken here, so that
    processes have it in the order of their trainings, however long each takes to start. Where the
    process of a killed training still has it, the new one waits for it."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file.fileno()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")

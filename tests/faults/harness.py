"""Faults: each row injects one kind many times, and says what must hold every time.

`python -m tests.faults` runs all rows in full and writes the table of docs/results/reliability.md;
the default suite runs a few trials of each.
"""

import atexit
import contextlib
import functools
import hashlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.pipeline.tiny_run import TinyRun, write_recipe

Trial = Callable[[random.Random], None]


@dataclass(frozen=True)
class Row:
    """One promise.

    `trials` prepares a folder and yields what is done again and again, each time with randomness of
    its own; a trial fails by an exception. `full` says how often, `sample` how often in the default
    suite (not at all where another row or test shows the same).
    """

    number: int
    name: str
    holds: str
    trials: Callable[[Path], contextlib.AbstractContextManager[Trial]]
    full: int
    sample: int


ROWS: list[Row] = []


def row(number: int, name: str, holds: str, *, full: int, sample: int) -> Callable:
    """Register a generator of trials as a row."""

    def register(function: Callable[[Path], Iterator[Trial]]) -> Callable:
        made = contextlib.contextmanager(function)
        ROWS.append(Row(number, name, holds, made, full, sample))
        return function

    return register


def randomness(row: Row, trial: int) -> random.Random:
    """What a trial draws from: it follows from its row and number, so that it can be repeated."""
    digest = hashlib.sha256(f"{row.number} {row.name} {trial}".encode()).digest()
    return random.Random(digest)


def initialized(folder: Path) -> TinyRun:
    """A tiny run that is ready to distil, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return _made_once().copy(folder / "run")


@functools.cache
def _made_once() -> TinyRun:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    run = TinyRun(write_recipe(folder), folder / "run")
    outcome = run.call("run", "--until", "init")
    assert outcome.code == 0, outcome.err
    return run

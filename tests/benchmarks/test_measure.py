"""Steps that take turns, each in a process of its own."""

import functools
import os
from pathlib import Path

import pytest

from benchmarks import measure

pytestmark = pytest.mark.e2e


def prepare(log: Path, name: str) -> measure.Step:
    """A step that says who took it, and where."""

    def step() -> None:
        with log.open("a") as file:
            file.write(f"{name} {os.getpid()}\n")

    return step


def fail() -> measure.Step:
    raise RuntimeError("no such step")


def test_steps_take_turns_in_processes_of_their_own(tmp_path):
    """A warm-up of each, then A B A B; the clock runs for the turns alone."""
    log = tmp_path / "log"
    steps = {name: functools.partial(prepare, log, name) for name in "AB"}
    seconds = measure.seconds_in_turns(steps, repeats=2)
    taken = [line.split() for line in log.read_text().splitlines()]
    assert [name for name, _ in taken] == ["A", "B", "A", "B", "A", "B"]
    assert len({pid for _, pid in taken} | {str(os.getpid())}) == 3
    assert {name: len(values) for name, values in seconds.items()} == {"A": 2, "B": 2}
    assert all(0 < value < 5 for values in seconds.values() for value in values)


def test_a_step_that_cannot_be_prepared_ends_the_measurement():
    """No figure is made of the others alone."""
    with pytest.raises(EOFError):
        measure.seconds_in_turns({"A": fail}, repeats=1)

"""What a person sees of a training: name, step and time left always, on any width of terminal."""

import io
import time

import pytest
from rich.console import Console
from rich.text import Text

from stillhouse.training.progress import ConsoleReporter
from stillhouse.wording import duration

VALUES = {
    "loss": 7.881, "soft_target": 0.206, "language_modeling": 5.838, "hidden_cosine": 0.051,
    "grad_norm": 1.0, "tokens_per_second": 1234.0, "seconds": 1.0, "tokens": 5,
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def shown(width: int, *, terminal: bool, clock: list[float]) -> str:
    """The last line after 10 of 140 steps of a minute each."""
    reporter, out = ConsoleReporter(), io.StringIO()
    reporter.console = Console(
        file=out, width=width, force_terminal=terminal, color_system=None, highlight=False
    )
    reporter.start("control_same_time (seed 12)", 0, 140)
    clock[0] = 600.0
    reporter.step(10, VALUES)
    reporter.finish()
    plain = Text.from_ansi(out.getvalue()).plain
    return [line for line in plain.splitlines() if line.strip()][-1]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_shows_name_step_and_time_left_in_one_line(clock, width):
    """Values and the bar take what room is left, and nothing wraps."""
    line = shown(width, terminal=True, clock=clock)
    assert "control_same_time (seed 12), step 10/140, 2 h 10 min left" in line
    assert len(line.rstrip()) < width
    assert ("loss 7.881" in line) == (width >= 80)
    assert ("1,234 tokens/s" in line) == (width > 80)
    assert ("━" in line) == (width == 200)


def test_a_file_gets_the_whole_line(clock):
    """However long: it is for searching."""
    line = shown(80, terminal=False, clock=clock)
    assert line == (
        "control_same_time (seed 12): step 10 of 140, 2 h 10 min left, loss 7.881, 1,234 tokens/s, "
        "soft_target 0.206, language_modeling 5.838, hidden_cosine 0.051"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.0321, "0.03 s"), (0.26, "0.3 s"), (1, "1 s"), (59.4, "59 s"),
        (59.6, "1 min"), (3570, "1 h"),
        (7809, "2 h 10 min"), (86_399, "1 d"), (360_000, "4 d 4 h"),
    ],
)  # fmt: skip
def test_a_duration_is_written_as_people_say_it(seconds, text):
    """Two units at most; never 60 of one."""
    assert duration(seconds) == text

"""A run's state on the terminal: a table that is redrawn, or a line from time to time where the
output is not a terminal.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from stillhouse import terminal, units
from stillhouse.report.curves import smooth
from stillhouse.watch.state import RunState, Training, read_state
from stillhouse.wording import duration

REFRESH_SECONDS = 2.0
SECONDS_BETWEEN_LINES = 10.0
BAR_WIDTH, CURVE_WIDTH = 20, 24
BLOCKS = "▁▂▃▄▅▆▇█"
WARM_UP_SHARE = 0.2  # the first steps fall far, and would flatten the rest


def watch(folder: Path) -> RunState:
    """Show a run until it ends; returns its last state."""
    console = Console(highlight=False)
    if not console.is_terminal:
        return _print_lines(console, folder)
    state = read_state(folder)
    with Live(view(state), console=console, auto_refresh=False) as live:
        while not state.is_over:
            time.sleep(REFRESH_SECONDS)
            state = read_state(folder)
            live.update(view(state), refresh=True)
    return state


def _print_lines(console: Console, folder: Path) -> RunState:
    last, last_printed = ("", ""), 0.0
    while True:
        state = read_state(folder)
        what = (state.sentence, str(state.progress.get("name")))
        now = time.monotonic()
        if what != last or now - last_printed > SECONDS_BETWEEN_LINES:
            last, last_printed = what, now
            console.print(line_of(state), markup=False, soft_wrap=True)
        if state.is_over:
            return state
        time.sleep(REFRESH_SECONDS)


def line_of(state: RunState) -> str:
    """The state in one line: what runs, how far it is, and the losses."""
    parts = [state.sentence.replace("\n", " ")]
    if work := work_of(state):
        parts.append(work)
    losses = [
        f"{title_of(each)} {loss_of(each)}" for each in state.trainings if each.model != "teacher"
    ]
    if losses:
        parts.append(f"loss: {', '.join(losses)}")
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts)


def view(state: RunState) -> Group:
    """The state as a few lines and a table."""
    parts: list[Any] = [Text(f"{state.folder}: {state.sentence}", style="bold")]
    if work := work_of(state):
        step, total = state.progress["step"], max(1, state.progress["total"])
        filled = min(BAR_WIDTH, BAR_WIDTH * step // total)
        parts.append(Text(f"{'━' * filled}{'·' * (BAR_WIDTH - filled)} {work}"))
    if state.trainings:
        columns = ["training", "step", "tokens", "loss", "tokens/s", "loss over steps"]
        rows = [
            [
                title_of(each),
                f"{each.step:,}",
                units.count(each.tokens),
                loss_of(each),
                speed_of(each),
                curve(each.losses),
            ]
            for each in state.trainings
        ]
        parts.append(terminal.table(columns, rows))
    return Group(*parts)


def work_of(state: RunState) -> str:
    """The training or measurement that runs, its step and the time left; empty for none."""
    progress = state.progress
    if state.status != "running" or "name" not in progress:
        return ""
    parts = [f"{progress['name']}: step {progress['step']:,} of {progress['total']:,}"]
    if progress.get("seconds_left") is not None:
        parts.append(f"{duration(progress['seconds_left'])} left")
    if speed := (progress.get("values") or {}).get("tokens_per_second"):
        parts.append(f"{speed:,.0f} tokens/s")
    return ", ".join(parts)


def title_of(training: Training) -> str:
    """The training's model, and its seed where there are several."""
    short = {"control_same_time": "same time"}
    name = short.get(training.model, training.model)
    return name if training.seed is None else f"{name}, seed {training.seed}"


def loss_of(training: Training) -> str:
    """The loss, smoothed over the last steps."""
    points = [(float(n), each) for n, each in enumerate(training.losses) if each is not None]
    if training.losses[-1] is None:
        return "not finite"
    return f"{smooth(points)[-1][1]:.4f}"


def speed_of(training: Training) -> str:
    """The mean speed of the last steps; empty where it is unknown."""
    speed = training.tokens_per_second
    return "" if speed is None else f"{speed:,.0f}"


def curve(values: Sequence[float | None], width: int = CURVE_WIDTH) -> str:
    """A line of blocks, each the mean of a part of the values. The first fifth may be cut off at
    the top; a part without a finite value is a cross."""
    num = min(width, len(values))
    parts = [values[i * len(values) // num : (i + 1) * len(values) // num] for i in range(num)]
    known = [[value for value in part if value is not None] for part in parts]
    means = [sum(part) / len(part) if part else None for part in known]
    later = [mean for mean in means[int(num * WARM_UP_SHARE) :] if mean is not None]
    if not later:
        return units.TIMES * num
    low, high = min(later), max(later)
    steps = len(BLOCKS) - 1
    scale = steps / (high - low) if high > low else 0.0
    return "".join(
        units.TIMES if mean is None else BLOCKS[max(0, min(steps, round((mean - low) * scale)))]
        for mean in means
    )

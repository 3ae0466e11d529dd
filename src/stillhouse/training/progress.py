"""How far a training is: its counts, the trend of its loss, and what is shown of them.

Divergence is a loss that stays far above the best level reached. A level is the first loss, or the
median of several consecutive losses, so that one lucky batch does not set it. Levels below one nat
per term count as one nat, so that noise around a tiny loss is not taken for divergence; and the
loss must stay there, so that a spike is not either.

Progress is shown as a bar on a terminal, elsewhere as a line from time to time.
"""

import math
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn
from rich.table import Column

from stillhouse.wording import duration

SECONDS_BETWEEN_LINES = 10.0
BAR_WIDTH = 20
LEVEL_STEPS = 5
PATIENCE_STEPS = 10
FACTOR = 3.0
FINAL_FACTOR = 30.0  # of a single batch after the last step, which is noisier


@runtime_checkable
class Reporter(Protocol):
    """Shows messages, and the steps of one training run or measurement."""

    def say(self, message: str) -> None: ...

    def start(self, name: str, done: int, total: int) -> None: ...

    def step(self, step: int, values: dict[str, int | float]) -> None: ...

    def finish(self) -> None: ...


class QuietReporter:
    """Reporter of the other ranks, which prints nothing."""

    def say(self, message: str) -> None: ...

    def start(self, name: str, done: int, total: int) -> None: ...

    def step(self, step: int, values: dict[str, int | float]) -> None: ...

    def finish(self) -> None: ...

    def __enter__(self) -> "QuietReporter":
        return self

    def __exit__(self, *_: object) -> None: ...


class ConsoleReporter:
    """Reports on stderr, so that stdout holds only results."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._bar: Bar | None = None
        self._name = ""
        self._started = self._last_line = 0.0
        self._first = self._total = 0

    def say(self, message: str) -> None:
        self.console.print(message, markup=False, soft_wrap=True)

    def start(self, name: str, done: int, total: int) -> None:
        self._name, self._total, self._first = name, total, done
        self._started = self._last_line = time.monotonic()
        if self.console.is_terminal:
            column = Column(no_wrap=True, overflow="ellipsis")
            line = TextColumn("{task.description}", markup=False, table_column=column)
            self._bar = Bar(line, console=self.console)
            self._bar.start()
            self._bar.add_task(self._line(done, {}), total=total, completed=done)

    def step(self, step: int, values: dict[str, int | float]) -> None:
        if self._bar is not None:
            line = self._line(step, values)
            self._bar.update(self._bar.task_ids[0], completed=step, description=line)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or step == self._total:
            self._last_line = time.monotonic()
            self.say(f"{self._name}: {', '.join([*self._times(step), *_terms(values)])}")

    def _times(self, step: int) -> list[str]:
        """The step, and the time left."""
        done = [f"step {step:,} of {self._total:,}"]
        if step > self._first:
            seconds = (time.monotonic() - self._started) / (step - self._first)
            done.append(f"{duration(seconds * (self._total - step))} left")
        return done

    def _line(self, step: int, values: dict[str, int | float]) -> str:
        """One line of the terminal: name, step and time left, then as many values as fit, and a bar
        where there is room."""
        line = ", ".join([self._name, *self._times(step)]).replace(" of ", "/", 1)
        width = self.console.width - 1
        for term in _terms(values):
            if len(line) + len(term) + 2 > width:
                break
            line += f", {term}"
        if len(line) + BAR_WIDTH + 1 > width:
            return line
        filled = BAR_WIDTH * step // max(1, self._total)
        return f"{'━' * filled}{'·' * (BAR_WIDTH - filled)} {line}"

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "ConsoleReporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        sys.stderr.flush()


def _terms(values: dict[str, int | float]) -> list[str]:
    """The values to show, the loss and the speed first."""
    hidden = (
        "learning_rate",
        "tokens",
        "seconds",
        "tokens_per_second",
        "mfu",
        "grad_norm",
        "skipped_steps",
    )
    terms = [
        f"{name} {value:.3f}"
        for name, value in values.items()
        if name not in hidden and not name.startswith("grad_norm/")
    ]
    if "tokens_per_second" in values:
        terms.insert(1, f"{values['tokens_per_second']:,.0f} tokens/s")
    return terms


@dataclass(frozen=True)
class LossTrend:
    """The last losses of a training, the best level, and the number of consecutive steps whose loss
    is far above it."""

    recent: tuple[float, ...] = ()
    best: float | None = None
    steps_above: int = 0

    def after(self, loss: float, floor: float) -> "LossTrend":
        """The trend after one more step's loss; levels below `floor` count as `floor`."""
        if not math.isfinite(loss):
            return LossTrend(self.recent, self.best, self.steps_above + 1)
        recent = (*self.recent, loss)[-LEVEL_STEPS:]
        best = loss if self.best is None else self.best
        if len(recent) == LEVEL_STEPS:
            best = min(best, statistics.median(recent))
        above = self.steps_above + 1 if self.is_far(loss, floor) else 0
        return LossTrend(recent, best, above)

    def is_far(self, loss: float, floor: float, factor: float = FACTOR) -> bool:
        """Whether a loss is far above the best level, or not finite."""
        if not math.isfinite(loss):
            return True
        return self.best is not None and loss > factor * max(self.best, floor)

    def has_diverged(self, *, is_last: bool) -> bool:
        """Whether the loss has been far above for long enough, or until the end of a training
        that is too short for that."""
        most = PATIENCE_STEPS if not is_last else min(PATIENCE_STEPS, 3)
        return self.steps_above >= most


def loss_floor(weights: Mapping[str, float]) -> float:
    """One nat per term."""
    return sum(weights.values())


@dataclass(frozen=True)
class Progress:
    """The progress of a run, and what it needs to resume exactly.

    `micro_batch_sequences` is set where memory did not allow the planned number. `recent_norms` are
    the gradient norms of the last steps, `trend` is the trend of the loss.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    micro_batch_sequences: int | None = None
    recent_norms: tuple[float, ...] = ()
    trend: LossTrend = field(default_factory=LossTrend)

    def facts(self) -> dict[str, int | float]:
        """The facts of a finished training, for its manifest."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "steps": self.step,
            "skipped_steps": self.skipped_steps,
        }

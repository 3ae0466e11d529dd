"""How far a training is: its counts, the trend of its loss, and what is shown of them.

Divergence is a loss that stays far above the best level reached. A level is the first loss, or the
median of several consecutive losses, so that one lucky batch does not set it. Levels below one nat
per term count as one nat, so that noise around a tiny loss is not taken for divergence; and the
loss must stay there, so that a spike is not either.

Progress is shown as a bar on a terminal, elsewhere as a line from time to time.
"""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pydantic import NonNegativeFloat, PositiveInt
from rich.console import Console
from rich.live import Live
from rich.text import Text

from stillhouse.wording import duration

SECONDS_BETWEEN_LINES = 10.0
BAR_WIDTH = 20
LEVEL_STEPS = 5
PATIENCE_STEPS, LAST_STEPS = 10, 3
FACTOR = 3.0
FINAL_FACTOR = 30.0  # of a single batch after the last step, which is noisier


@runtime_checkable
class Reporter(Protocol):
    """Shows messages, and the steps of one training run or measurement."""

    def say(self, message: str) -> None:
        """Show a message."""

    def start(self, name: str, done: int, total: int) -> None:
        """Begin to show steps, `done` of `total` of which were done before."""

    def step(self, step: int, values: dict[str, int | float]) -> None:
        """Show a step, counted from 1, and its values."""

    def finish(self) -> None:
        """Show no more steps."""


class QuietReporter(Reporter):
    """Reporter of the other ranks, which prints nothing."""


class ConsoleReporter:
    """Reports on stderr, so that stdout holds only results."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._name = ""
        self._started = self._last_line = 0.0
        self._first = self._total = 0

    def say(self, message: str) -> None:
        self.console.print(message, markup=False, soft_wrap=True)

    def start(self, name: str, done: int, total: int) -> None:
        self._name, self._total, self._first = name, total, done
        self._started = self._last_line = time.monotonic()
        if self.console.is_terminal:
            self._live = Live(self._line(done, {}), console=self.console)
            self._live.start()

    def step(self, step: int, values: dict[str, int | float]) -> None:
        if self._live is not None:
            self._live.update(self._line(step, values))
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

    def _line(self, step: int, values: dict[str, int | float]) -> Text:
        """One line of the terminal: name, step and time left, then as many values as fit, and a bar
        where there is room."""
        line = ", ".join([self._name, *self._times(step)]).replace(" of ", "/", 1)
        width = self.console.width - 1
        for term in _terms(values):
            if len(line) + len(term) + 2 > width:
                break
            line += f", {term}"
        if len(line) + BAR_WIDTH + 1 <= width:
            filled = BAR_WIDTH * step // max(1, self._total)
            line = f"{'━' * filled}{'·' * (BAR_WIDTH - filled)} {line}"
        return Text(line, no_wrap=True, overflow="ellipsis")

    def finish(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


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
        return self.steps_above >= (LAST_STEPS if is_last else PATIENCE_STEPS)


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
    seconds: NonNegativeFloat = 0.0
    skipped_steps: int = 0
    micro_batch_sequences: PositiveInt | None = None
    recent_norms: tuple[float, ...] = ()
    trend: LossTrend = field(default_factory=LossTrend)

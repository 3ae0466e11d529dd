"""Progress of training and measuring: a bar on a terminal, elsewhere a line from time to time."""

import sys
import time
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Column

from stillhouse.wording import duration

SECONDS_BETWEEN_LINES = 10.0
BAR_WIDTH = 20


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
        self._bar: Progress | None = None
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
            self._bar = Progress(line, console=self.console)
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

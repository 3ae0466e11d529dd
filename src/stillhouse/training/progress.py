"""What a person sees while a model trains or is measured: a bar on a terminal, a plain
line now and then elsewhere."""

import sys
import time
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


@runtime_checkable
class Reporter(Protocol):
    """Shows messages, and the steps of one training run or measurement."""

    def say(self, message: str) -> None: ...

    def start(self, name: str, done: int, total: int) -> None: ...

    def step(self, step: int, values: dict[str, int | float]) -> None: ...

    def finish(self) -> None: ...


class QuietReporter:
    """What the other ranks report: nothing."""

    def say(self, message: str) -> None: ...

    def start(self, name: str, done: int, total: int) -> None: ...

    def step(self, step: int, values: dict[str, int | float]) -> None: ...

    def finish(self) -> None: ...

    def __enter__(self) -> "QuietReporter":
        return self

    def __exit__(self, *_: object) -> None: ...


class ConsoleReporter:
    """Reports on stderr, so that stdout holds results alone."""

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
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=self.console,
            )
            self._bar.start()
            self._bar.add_task(name, total=total, completed=done, values="")

    def step(self, step: int, values: dict[str, int | float]) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, values=_summary(values))
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or step == self._total:
            self._last_line = time.monotonic()
            left = (
                (self._last_line - self._started)
                / max(1, step - self._first)
                * (self._total - step)
            )
            parts = [f"step {step} of {self._total}", f"{left:.0f} s left", _summary(values)]
            self.say(f"{self._name}: {', '.join(part for part in parts if part)}")

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "ConsoleReporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        sys.stderr.flush()


def _summary(values: dict[str, int | float]) -> str:
    hidden = (
        "learning_rate",
        "tokens",
        "seconds",
        "tokens_per_second",
        "floor_share",
        "grad_norm",
        "skipped_steps",
    )
    terms = [
        f"{name} {value:.3f}"
        for name, value in values.items()
        if name not in hidden and not name.startswith("grad_norm/")
    ]
    if "tokens_per_second" in values:
        terms.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(terms)

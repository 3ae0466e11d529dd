"""Stopping on request: SIGINT and SIGTERM set a flag that training reads between micro-batches."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from stillhouse.errors import Stopped
from stillhouse.training.ranks import Ranks


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is noted; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number


@contextmanager
def finishing(what: str, ranks: Ranks) -> Iterator[None]:
    """Within, a request to stop waits until the end, where `what` is committed.

    Raises:
        Stopped: there was one, on any rank.
    """
    with StopRequest() as stop:
        yield
        number = ranks.highest(stop.signal_number or 0)
    if number:
        raise Stopped(
            f"Stopped by signal {number}; {what} is committed. Give the same command again to go "
            "on.",
            number,
        )

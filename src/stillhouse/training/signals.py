"""Stopping on request: SIGINT and SIGTERM set a flag that training reads between micro-batches."""

import signal
import threading
from types import FrameType

from stillhouse.errors import Stopped


class StopRequest:
    """Within, the first SIGINT or SIGTERM is recorded; a second SIGINT interrupts immediately."""

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


def stopped(number: int, committed: str) -> Stopped:
    """The error that ends a command after a signal; `committed` says what is kept."""
    by = "Interrupted (Ctrl-C)" if number == signal.SIGINT else "Stopped by SIGTERM"
    if number not in (signal.SIGINT, signal.SIGTERM):
        by = f"Stopped by signal {number}"
    return Stopped(f"{by}. {committed} Run the same command again to resume.", number)


NEVER = StopRequest()  # receives no signal

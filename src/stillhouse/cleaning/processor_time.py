"""A limit on the processor time of a block of code."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TookTooLongError(Exception):
    """A block has used up its processor time."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop a block of Python code that uses more than `seconds` of processor time, which does not
    depend on what else runs on the machine. Only the main thread of a process can have a limit.

    Raises:
        TookTooLongError: the block was stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)

"""A limit on the CPU time of a block of code."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

AGAIN_SECONDS = 0.5  # an exception that is raised in a destructor or a callback is lost


class TookTooLongError(BaseException):
    """A block has used up its CPU time. Not an `Exception`, so that a library that handles
    every error of a part of its work does not handle this one."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop a block of Python code that uses more than `seconds` of CPU time, which does not
    depend on what else runs on the machine. Only the main thread of a process can have a limit.

    A call into C is stopped when it returns, so what is called must be bounded by its input.

    Raises:
        TookTooLongError: the block was stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)

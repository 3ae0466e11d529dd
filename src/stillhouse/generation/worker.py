"""A thread that does all the work of one model, so that its callers need not wait for each other.

Steps of the batcher run as long as there is anything to generate; other work on the same model (the
features of a text, say) is done between two steps.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from stillhouse.errors import ResourceError
from stillhouse.generation.batching import Batcher, Listener, Request, Ticket

Result = TypeVar("Result")


class Worker:
    """Runs a batcher, and other work between its steps, in a thread of its own."""

    def __init__(self, batcher: Batcher | None) -> None:
        """Args: batcher: None for a model that does not generate."""
        self.batcher = batcher
        self._wake = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Take a request; the listener is called in the worker's thread.

        Raises:
            DataError: a prompt that cannot be read.
        """
        assert self.batcher is not None, "this model does not generate"
        with self._wake:
            ticket = self.batcher.submit(request, listener)
            self._wake.notify()
        return ticket

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Have `work` done between two steps."""
        future: Future[Result] = Future()
        with self._wake:
            self._calls.append((future, work))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Finish what was taken, and end the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._has_work() or self._is_closing)
                if not self._has_work():
                    return
                call = self._calls.popleft() if self._calls else None
            if call is not None:
                _answer(*call)
            if self.batcher is not None and not self.batcher.is_idle:
                self._step(self.batcher)

    def _step(self, batcher: Batcher) -> None:
        """An error of a step, such as memory that has run out, ends what was under way; the thread
        goes on with what comes."""
        try:
            batcher.step()
        except Exception as error:
            batcher.abandon(ResourceError(f"Generating failed: {error}"))

    def _has_work(self) -> bool:
        return bool(self._calls) or (self.batcher is not None and not self.batcher.is_idle)


def _answer(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)

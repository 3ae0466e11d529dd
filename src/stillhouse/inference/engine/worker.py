"""A thread that does all the work of models, so that its callers need not wait for each other.

Steps of the batchers run as long as there is anything to generate; other work (the features of a
text, say, or loading a model) is done between two steps.

One thread, however many models: GNU's OpenMP keeps workers for each thread that multiplies
matrices, and as soon as there are more of them than processors it lets them sleep between any two
products. One more thread that did so took a third of the speed (docs/experiments.md, "A second
thread").
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from stillhouse.errors import ResourceError
from stillhouse.inference.engine.batcher import Batcher, Listener, Request, RequestHandle

Result = TypeVar("Result")


class Worker:
    """Runs batchers, and other work between their steps, in a thread of its own."""

    def __init__(self) -> None:
        self._batchers: list[Batcher] = []
        self._wake = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def add(self, batcher: Batcher) -> None:
        """Step this batcher too, from now on."""
        with self._wake:
            self._batchers.append(batcher)

    def submit(self, batcher: Batcher, request: Request, listener: Listener) -> RequestHandle:
        """Take a request for one of the batchers; the listener is called in the worker's thread.

        Raises:
            DataError: a prompt that cannot be read.
        """
        with self._wake:
            ticket = batcher.submit(request, listener)
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
            for batcher in self._batchers:
                if not batcher.is_idle:
                    _step(batcher)

    def _has_work(self) -> bool:
        return bool(self._calls) or not all(batcher.is_idle for batcher in self._batchers)


def _step(batcher: Batcher) -> None:
    """An error of a step, such as memory that has run out, ends what was under way; the thread goes
    on with what comes."""
    try:
        batcher.step()
    except Exception as error:
        batcher.abandon(ResourceError(f"Generating failed: {error}"))


def _answer(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)

"""A thread that runs all models, so that callers need not wait for each other.

It steps the batchers as long as any has work; other calls (computing features, loading a model) run
between two steps.

There is one thread for all models: GNU OpenMP keeps workers for each thread that multiplies
matrices, and once there are more of them than cores, it lets them sleep between any two products.
A second thread cost a third of the speed (docs/results/experiments.md, "A second thread").
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from stillhouse.errors import ResourceError
from stillhouse.inference.engine.batcher import Listener, Request, RequestHandle
from stillhouse.inference.engine.interface import RequestBatcher

Result = TypeVar("Result")


class Worker:
    """Runs batchers, and other calls between their steps, in its own thread."""

    def __init__(self) -> None:
        self._batchers: list[RequestBatcher] = []
        self._wake = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def add(self, batcher: RequestBatcher) -> None:
        """Run this batcher too."""
        with self._wake:
            self._batchers.append(batcher)

    def submit(
        self, batcher: RequestBatcher, request: Request, listener: Listener
    ) -> RequestHandle:
        """Submit a request to one of the batchers; the listener is called in the worker's thread.

        Raises:
            DataError: an invalid prompt.
        """
        with self._wake:
            handle = batcher.submit(request, listener)
            self._wake.notify()
        return handle

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Run `work` between two steps."""
        future: Future[Result] = Future()
        with self._wake:
            self._calls.append((future, work))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Finish the submitted work, and end the thread."""
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


def _step(batcher: RequestBatcher) -> None:
    """An error in a step, such as running out of memory, fails the current requests; the thread
    continues with the next ones."""
    try:
        batcher.step()
    except Exception as error:
        batcher.abandon(ResourceError(f"Generation failed: {error}"))


def _answer(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)

"""The progress of a measurement, with the time left, on any reporter."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stillhouse.training.progress import Reporter


@contextmanager
def progress(reporter: Reporter, name: str, total: int) -> Iterator[Callable[..., None]]:
    """Gives the function to call after each batch, with its number of tokens, or after each turn;
    calls beyond `total` are not shown."""
    done = tokens = 0
    started = time.monotonic()

    def tick(num_tokens: int = 0) -> None:
        nonlocal done, tokens
        done, tokens = done + 1, tokens + num_tokens
        rate = {"tokens_per_second": tokens / (time.monotonic() - started)} if tokens else {}
        if done <= total:
            reporter.step(done, rate)

    reporter.start(name, 0, total)
    try:
        yield tick
    finally:
        reporter.finish()

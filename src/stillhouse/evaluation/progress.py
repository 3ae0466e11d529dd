"""How far a measurement is, with the time left, on whatever reporter there is."""

import time
from types import TracebackType

from stillhouse.training.progress import Reporter


class Progress:
    """One bar, or lines now and then, over the batches or turns of a measurement."""

    def __init__(self, reporter: Reporter | None, name: str, total: int) -> None:
        """Without a reporter nothing is shown; steps beyond `total` are not."""
        self._reporter, self._name, self._total = reporter, name, total
        self._done = self._tokens = 0
        self._started = 0.0

    def add(self, tokens: int | None = None) -> None:
        """One more batch, of so many tokens, or one more turn."""
        self._done += 1
        if self._reporter is None or self._done > self._total:
            return
        values: dict[str, int | float] = {}
        if tokens is not None:
            self._tokens += tokens
            values["tokens_per_second"] = self._tokens / (time.monotonic() - self._started)
        self._reporter.step(self._done, values)

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        if self._reporter is not None:
            self._reporter.start(self._name, 0, self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._reporter is not None:
            self._reporter.finish()

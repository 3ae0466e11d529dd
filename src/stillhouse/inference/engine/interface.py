"""What answers requests with one model: our own `Batcher`, or another engine."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from stillhouse.errors import StillhouseError
from stillhouse.inference.engine.batcher import Listener, Request, RequestHandle


@runtime_checkable
class RequestBatcher(Protocol):
    """`submit` may be called from any thread; `step` from one thread only.

    Attributes:
        num_generated: Tokens so far.
    """

    num_generated: int

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        ...

    @property
    def num_running(self) -> int:
        """Sequences that are generated now."""
        ...

    @property
    def num_slots(self) -> int:
        """Sequences that are generated at once, at most."""
        ...

    @property
    def num_free(self) -> int:
        """Sequences that could start now."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or runs."""
        ...

    def submit(self, request: Request, listener: Listener) -> RequestHandle:
        """Queue a request; `step` calls the listener with its events; raises as `check` does."""
        ...

    def share(self, ids: Sequence[int]) -> None:
        """Prepare for prompts that begin with these tokens."""
        ...

    def check(self, request: Request) -> None:
        """Reject a request that cannot be answered."""
        ...

    def step(self) -> None:
        """Do a part of the work, and send its events."""
        ...

    def run(self) -> None:
        """Step until every submitted request is answered."""
        ...

    def abandon(self, error: StillhouseError) -> None:
        """Fail all requests with this error."""
        ...

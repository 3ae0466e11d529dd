"""Models that are being served, and the way from a request to their answers."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stillhouse.errors import StillhouseError
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.batcher import (
    Batcher,
    Ended,
    Event,
    Failed,
    NewToken,
    PrefillDone,
    Reason,
    Request,
    ScoredToken,
)
from stillhouse.inference.engine.token_healing import TokenHealer
from stillhouse.inference.engine.worker import Worker
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inference.quantization import Precision
from stillhouse.serving.limits import Limits
from stillhouse.serving.problems import Problem, from_error, overloaded

Told = PrefillDone | NewToken | Ended


@dataclass
class Continuation:
    """One text, as far as it has come."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # what each token added to the text
    reason: Reason | None = None


@dataclass
class Answer:
    """The texts of one prompt."""

    prompt: tuple[ScoredToken, ...]
    continuations: list[Continuation]


class Hosted:
    """One model, and the thread that does its work and that of the others."""

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        limits: Limits,
        worker: Worker,
        *,
        precision: Precision = "fp32",
        note: str = "",
    ) -> None:
        """Args: note: What the model's card says of its limits."""
        self.name = name
        self.loaded = loaded
        self.created = int(time.time())
        self.limits = limits
        self.precision: Precision = precision
        self.note = note
        self.is_drafted_for = False
        self.batcher = loaded.batcher(limits.num_slots) if isinstance(loaded, CausalLM) else None
        self._worker = worker
        if self.batcher is not None:
            worker.add(self.batcher)

    async def do(self, work: Any, *arguments: Any) -> Any:
        """Have the model's thread do this between two steps, and wait for it."""
        try:
            return await asyncio.wrap_future(self._worker.call(lambda: work(*arguments)))
        except StillhouseError as error:
            raise from_error(error) from error

    @cached_property
    def resumer(self) -> TokenHealer:
        return TokenHealer(self.loaded.tokenizer)

    def must_continue_text(self) -> Batcher:
        """What continues text here.

        Raises:
            Problem: 400, nothing does.
        """
        if self.batcher is None:
            raise Problem(400, f"{self.name} does not continue text.")
        return self.batcher

    def check(self, requests: Sequence[Request]) -> Batcher:
        """What continues text here, if it can answer these and its queue has room.

        Raises:
            Problem: 400 or 429.
        """
        batcher = self.must_continue_text()
        try:
            for request in requests:
                batcher.check(request)
        except StillhouseError as error:
            raise from_error(error) from error
        most = self.limits.queue + self.limits.num_slots
        if len(requests) > most:
            raise Problem(
                400, f"{len(requests)} prompts at once are more than the {most} this server takes."
            )
        if batcher.num_waiting + len(requests) > self.limits.queue + batcher.model.num_free:
            raise overloaded(batcher.num_waiting)
        return batcher

    async def events(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Told], None]:
        """The events of these requests as they come, each with its request's number. Whoever stops
        listening frees their room.

        Raises:
            Problem: what cannot be answered.
        """
        batcher = self.check(requests)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def listener(number: int) -> Any:
            def on_event(event: Event) -> None:
                loop.call_soon_threadsafe(queue.put_nowait, (number, event))

            return on_event

        tickets = []
        try:
            for number, request in enumerate(requests):
                tickets.append(self._worker.submit(batcher, request, listener(number)))
            left = sum(request.settings.num_return_sequences for request in requests)
            while left:
                number, event = await queue.get()
                if isinstance(event, Failed):
                    raise from_error(event.error)
                left -= isinstance(event, Ended)
                yield number, event
        except StillhouseError as error:
            raise from_error(error) from error
        finally:
            for ticket in tickets:
                ticket.cancel()

    async def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The whole answers to these requests.

        Raises:
            Problem: what cannot be answered.
        """
        answers = [
            Answer((), [Continuation() for _ in range(request.settings.num_return_sequences)])
            for request in requests
        ]
        async with aclosing(self.events(requests)) as events:
            async for number, event in events:
                if isinstance(event, PrefillDone):
                    answers[number].prompt = event.tokens
                else:
                    add(answers[number].continuations[event.sequence], event)
        return answers


def add(continuation: Continuation, event: NewToken | Ended) -> None:
    """Add what an event brings to the text it belongs to."""
    continuation.text += event.text
    if isinstance(event, NewToken):
        continuation.tokens.append(event.token)
        continuation.texts.append(event.text)
    else:
        continuation.reason = event.reason

"""Server-sent events."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse

from stillhouse.serving.depends import Client
from stillhouse.serving.problems import Problem, as_openai

# What a route that can stream says of its answers.
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; or, streamed, an event for each piece of it.",
        "content": {
            "application/json": {"schema": {}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def event_stream(
    events: AsyncGenerator[str, None],
    served: Client,
    problem_form: Callable[[Problem], Any] = as_openai,
) -> StreamingResponse:
    """Each item as an event. The first is waited for, so that what is refused has the status that
    says so; a later problem is the last event.

    Raises:
        Problem: what would have been the first event.
    """
    first = await served.unless_gone(anext(events, None))

    async def encoded() -> AsyncIterator[bytes]:
        async with aclosing(events) as source:
            if first is not None:
                yield f"data: {first}\n\n".encode()
            try:
                async for event in source:
                    yield f"data: {event}\n\n".encode()
            except Problem as problem:
                yield f"data: {json.dumps(problem_form(problem))}\n\n".encode()

    return StreamingResponse(encoded(), media_type="text/event-stream", headers=HEADERS)

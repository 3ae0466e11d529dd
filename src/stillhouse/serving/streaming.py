"""Server-sent events."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse

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


def event_stream(
    events: AsyncGenerator[str, None], problem_form: Callable[[Problem], Any] = as_openai
) -> StreamingResponse:
    """Each item as an event. A problem on the way is the last one: its status can no longer be
    sent."""

    async def encoded() -> AsyncIterator[bytes]:
        async with aclosing(events) as source:
            try:
                async for event in source:
                    yield f"data: {event}\n\n".encode()
            except Problem as problem:
                yield f"data: {json.dumps(problem_form(problem))}\n\n".encode()

    return StreamingResponse(encoded(), media_type="text/event-stream", headers=HEADERS)

"""What every dialect is made of: its definition, the served models, and the client to answer.

To add a dialect, write a module with its routes and a `DIALECT`, and list it in `registry`.
"""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from stillhouse.errors import StillhouseError
from stillhouse.serving.middleware import Metrics
from stillhouse.serving.schemas import APIError, as_api_error
from stillhouse.serving.served_model import (
    RequestOutput,
    ServedModel,
    ServedModels,
    StreamEvent,
)

Result = TypeVar("Result")
DISCONNECT_POLL_SECONDS = 0.5
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

# The OpenAPI description of a response that may be streamed.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The whole response, or a stream of server-sent events.",
        "content": {
            "application/json": {"schema": {}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


FINISH_REASONS = {"stop": "stop", "length": "length", "time": "length"}
ERROR_TYPES = {400: "validation", 401: "authentication", 404: "not_found", 429: "overloaded"}


def error_body(error: APIError) -> dict[str, Any]:
    """The error body of Text Generation Inference, which all dialects but OpenAI's have."""
    return {"error": error.message, "error_type": ERROR_TYPES.get(error.status, "generation")}


def encode_event(event: Any) -> bytes:
    """A JSON value as a server-sent event."""
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


@dataclass(frozen=True)
class Dialect:
    """How one kind of client speaks to a model.

    Attributes:
        router: The routes.
        error_body: The JSON body of an error response.
        encode_event: The bytes of one event of a streamed response.
        media_type: The type of a streamed response.
        path_part: What the paths have in common whose errors have this form, also before a route
            is found (an unknown path, a wrong key); None where that is the default form.
    """

    router: APIRouter
    error_body: Callable[[APIError], dict[str, Any]] = error_body
    encode_event: Callable[[Any], bytes] = encode_event
    media_type: str = "text/event-stream"
    path_part: str | None = None


@dataclass
class StreamedResponse(ABC):
    """The events of a dialect's response to generation requests."""

    model: ServedModel
    outputs: Sequence[RequestOutput]

    @abstractmethod
    def chunks(self, output: RequestOutput, event: StreamEvent) -> Iterator[Any]:
        """What a streamed response has, for `Dialect.encode_event`, of an event that was added to
        an output."""

    async def stream(self) -> AsyncGenerator[Any, None]:
        """Run the requests; the chunks of their events."""
        async with aclosing(self.model.events(self.outputs)) as events:
            async for output, event in events:
                for chunk in self.chunks(output, event):
                    yield chunk


class GenerationResponse(StreamedResponse):
    """The JSON of a dialect's response to generation requests, whole or streamed."""

    @abstractmethod
    def whole(self) -> Any:
        """The response's body, once the outputs are complete."""


class Client:
    """The client of one HTTP request."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._metrics: Metrics = request.app.state.metrics

    def count_prompt_tokens(self, model: ServedModel, outputs: Sequence[RequestOutput]) -> None:
        """Add to the server's metrics."""
        num_tokens = sum(len(output.request.prompt_ids) for output in outputs)
        self._metrics.prompt_tokens.labels(model.name).inc(num_tokens)

    async def cancel_on_disconnect(self, work: Awaitable[Result]) -> Result:
        """Await `work`, or cancel it when the client disconnects.

        Raises:
            APIError: The client disconnected (nobody reads this).
        """
        task = asyncio.ensure_future(work)
        try:
            while True:
                done, _ = await asyncio.wait((task,), timeout=DISCONNECT_POLL_SECONDS)
                if done:
                    return task.result()
                if await self._request.is_disconnected():
                    raise APIError(499, "The client closed the connection.")
        finally:
            task.cancel()

    async def respond(
        self, response: GenerationResponse, dialect: Dialect, *, stream: bool
    ) -> Response:
        """Run generation requests, and send their output whole or streamed."""
        self.count_prompt_tokens(response.model, response.outputs)
        if stream:
            return await self.stream(response.stream(), dialect)
        await self.cancel_on_disconnect(response.model.generate(response.outputs))
        return JSONResponse(response.whole())

    async def stream(
        self, events: AsyncGenerator[Any, None], dialect: Dialect
    ) -> StreamingResponse:
        """Send events as they come. The first is awaited before the response starts, so that a
        rejected request has its own status; a later error is the last event.

        Raises:
            APIError: The request was rejected.
            StillhouseError: So, too, by the model.
        """
        first = await self.cancel_on_disconnect(anext(events, None))

        async def encoded() -> AsyncIterator[bytes]:
            async with aclosing(events):
                if first is not None:
                    yield dialect.encode_event(first)
                try:
                    async for event in events:
                        yield dialect.encode_event(event)
                except (APIError, StillhouseError) as error:
                    yield dialect.encode_event(dialect.error_body(as_api_error(error)))

        return StreamingResponse(encoded(), media_type=dialect.media_type, headers=STREAM_HEADERS)


def _models(request: Request) -> ServedModels:
    models: ServedModels | None = request.app.state.models
    if models is None:
        raise APIError(503, "The model is loading; retry in a moment.")
    return models


ModelsDep = Annotated[ServedModels, Depends(_models)]
ClientDep = Annotated[Client, Depends(Client)]

"""What every request passes before a route sees it: authentication, size limit, metrics."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.serving.schemas import APIError
from stillhouse.serving.served_model import ServedModels

MAX_BODY_BYTES = 2**20
MAX_DRAINED_BYTES = 16 * MAX_BODY_BYTES
DRAIN_SECONDS = 1.0
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
MODEL_GAUGES = {
    "waiting": ("Requests waiting for a slot.", "num_waiting"),
    "running": ("Sequences being generated.", "num_running"),
    "generated_tokens": ("Tokens generated since the start.", "num_generated"),
}


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "stillhouse_requests",
            "Requests answered, by route and status.",
            ("route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "stillhouse_request_seconds",
            "Seconds from a request to the end of its response.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "stillhouse_prompt_tokens",
            "Tokens of prompts.",
            ("model",),
            registry=self._registry,
        )

    def watch(self, models: ServedModels) -> None:
        """Export the models' own counts from now on."""
        for name, (description, attribute) in MODEL_GAUGES.items():
            gauge = Gauge(f"stillhouse_{name}", description, ("model",), registry=self._registry)
            for model in models:
                if model.batcher is not None:
                    read = partial(getattr, model.batcher, attribute)
                    gauge.labels(model.name).set_function(read)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class RequestGuard:
    """Rejects requests without the API key and bodies that are too long; measures all requests.

    Plain ASGI: a response is passed on as it is sent. `error_body` gives the JSON of an error on a
    path.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        api_key: str | None,
        error_body: Callable[[APIError, str], dict[str, Any]],
    ) -> None:
        self._app, self._metrics, self._api_key = app, metrics, api_key
        self._error_body = error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        if scope["method"] == "HEAD":  # answered as GET is; the server leaves the body out
            scope = {**scope, "method": "GET"}

        async def measured_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, await _limited(receive), measured_send)
        except APIError as error:
            response = JSONResponse(
                self._error_body(error, scope["path"]), error.status, error.headers
            )
            await _reject(response, receive, measured_send)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """Raises: APIError: 401, 413 or 415, from the headers alone."""
        headers = Headers(scope=scope)
        if self._api_key is not None and not _is_public(scope):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._api_key.encode()):
                raise APIError(401, "The API key is missing or wrong.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            raise _body_too_long()
        if (encoding := headers.get("content-encoding", "identity")) != "identity":
            raise APIError(415, f"The Content-Encoding is {encoding}; send the body uncompressed.")


def _is_public(scope: Scope) -> bool:
    path, is_get = scope["path"], scope["method"] == "GET"
    return path == "/health" or (is_get and (path in ("/", "/docs") or path.startswith("/web/")))


def _body_too_long() -> APIError:
    return APIError(413, f"The body exceeds {MAX_BODY_BYTES:,} bytes.")


async def _chunks(receive: Receive) -> AsyncGenerator[Message, None]:
    """The messages of a body, up to its end or the client's disconnect."""
    more = True
    while more:
        message = await receive()
        yield message
        more = message.get("more_body", False)


async def _limited(receive: Receive) -> Receive:
    """Read the whole body, which routes need before they start, and return it as one message.

    Raises:
        APIError: 413.
    """
    body, last = b"", {}
    async for last in _chunks(receive):
        body += last.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise _body_too_long()
    waiting = [{**last, "body": body}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


async def _reject(response: JSONResponse, receive: Receive, send: Send) -> None:
    """Send an error before any more of the body is read. What the client still sends is dropped,
    within limits, before the connection closes: the client would lose the response otherwise."""
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for message in _chunks(receive):
                num_bytes += len(message.get("body", b""))
                if num_bytes >= MAX_DRAINED_BYTES:
                    break
    await send({"type": "http.response.body"})

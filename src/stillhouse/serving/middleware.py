"""What every request passes before a route sees it: authentication, size limit, metrics."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.serving.dialects.registry import error_body
from stillhouse.serving.errors import APIError
from stillhouse.serving.metrics import Metrics

MAX_BODY_BYTES = 2**20
MAX_DRAINED_BYTES = 16 * MAX_BODY_BYTES
DRAIN_SECONDS = 1.0


class RequestGuard:
    """Rejects requests without the API key and bodies that are too long; measures all requests.

    Plain ASGI: a response is passed on as it is sent.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, api_key: str | None) -> None:
        self._app = app
        self._metrics = metrics
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        is_head = scope["method"] == "HEAD"
        if is_head:  # answered as GET is, without the body
            scope = {**scope, "method": "GET"}

        async def measured_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, await _limited(receive), measured_send)
        except APIError as error:
            response = JSONResponse(error_body(error, scope["path"]), error.status, error.headers)
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

"""What every request passes before a route sees it: its key, its size, the clock.

Plain ASGI: nothing here reads ahead of the route, or holds back what it sends.
"""

import asyncio
import contextlib
import hmac
import json
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.serving.limits import BODY_BYTES
from stillhouse.serving.metrics import Metrics
from stillhouse.serving.problems import Problem, as_hub, as_openai

DROPPED_BYTES = 16 * BODY_BYTES
PATIENCE_SECONDS = 0.5


def body_of(problem: Problem, path: str) -> dict[str, Any]:
    """A problem in the words of the dialect that a path belongs to."""
    return as_openai(problem) if "/v1/" in path else as_hub(problem)


class Guards:
    """Refuses requests without the key, and bodies that are too long; counts all of them."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, api_key: str | None) -> None:
        self._app = app
        self._metrics = metrics
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        body = _Body(receive)
        is_head = scope["method"] == "HEAD"
        if is_head:  # what GET answers, without its body
            scope = {**scope, "method": "GET"}

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if body.is_too_long:  # whatever the route makes of a body that breaks off
                    raise _too_long()
                status = message["status"]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            problem = self._refused(scope)
            if problem is None:
                try:
                    await self._app(scope, body.receive, counted_send)
                except Exception:
                    if not body.is_too_long:
                        raise
                    problem = _too_long()
            if problem is not None:
                status = problem.status
                await body.drop()
                await _respond(problem, scope["path"], send)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _refused(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        if self._api_key is not None and not _is_open(scope):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._api_key.encode()):
                return Problem(401, "The API key is missing or wrong.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_BYTES:
            return _too_long()
        if (encoding := headers.get("content-encoding", "identity")) != "identity":
            return Problem(415, f"The Content-Encoding is {encoding}; send the body as it is.")
        return None


def _is_open(scope: Scope) -> bool:
    path, is_get = scope["path"], scope["method"] == "GET"
    return path == "/health" or (is_get and (path in ("/", "/docs") or path.startswith("/web/")))


def _too_long() -> Problem:
    return Problem(413, f"The body is longer than {BODY_BYTES:,} bytes.")


class _Body:
    """The body of a request, which breaks off where it is too long."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read = 0
        self.is_too_long = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._read += len(message.get("body", b""))
        if self._read > BODY_BYTES:
            self.is_too_long = True
            return {"type": "http.disconnect"}
        return message

    async def drop(self) -> None:
        """Take what is left of it, within bounds: a client that is still sending would not see the
        answer."""
        more = True
        with contextlib.suppress(TimeoutError):
            while more and self._read < DROPPED_BYTES:
                message = await asyncio.wait_for(self._receive(), PATIENCE_SECONDS)
                self._read += len(message.get("body", b""))
                more = message.get("more_body", False)


async def _respond(problem: Problem, path: str, send: Send) -> None:
    body = json.dumps(body_of(problem, path)).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **problem.headers,
    }
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})

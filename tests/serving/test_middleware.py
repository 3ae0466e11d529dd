"""What is decided from a request's headers alone, before its body is read."""

import asyncio
import json

import pytest

from stillhouse.serving import middleware
from stillhouse.serving.dialects.registry import error_body
from stillhouse.serving.middleware import MAX_BODY_BYTES, MAX_DRAINED_BYTES, Metrics, RequestGuard

KEY = [(b"authorization", b"Bearer secret")]
CHUNK = 2**16


def request(headers, receive):
    """One POST through a guard with a key: what happened, in order, and the response."""
    happened, sent = [], []

    async def app(scope, receive, send):
        happened.append("route")
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def read():
        happened.append("read")
        return await receive()

    async def send(message):
        happened.append(message["type"])
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    guard = RequestGuard(app, metrics=Metrics(), api_key="secret", error_body=error_body)
    asyncio.run(guard(scope, read, send))
    return happened, sent


async def endless():
    return {"type": "http.request", "body": b" " * CHUNK, "more_body": True}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([(b"authorization", b"Bearer other")], 401),
        ([*KEY, (b"content-length", b"%d" % (MAX_BODY_BYTES + 1))], 413),
        ([*KEY, (b"content-length", b"-1")], 413),
        ([*KEY, (b"content-encoding", b"gzip")], 415),
    ],
)
def test_key_and_size_are_checked_before_the_body_is_read(headers, status):
    """The whole error is sent first; of the body a bounded part is dropped, and no route runs."""
    happened, sent = request(headers, endless)
    assert happened[:2] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == status
    assert json.loads(sent[1]["body"])["error"]["message"]
    assert happened.count("read") == MAX_DRAINED_BYTES // CHUNK
    assert "route" not in happened


def test_body_without_a_length_is_read_up_to_the_limit():
    happened, sent = request(KEY, endless)
    assert sent[0]["status"] == 413
    assert happened.index("http.response.start") == MAX_BODY_BYTES // CHUNK + 1
    assert "route" not in happened


def test_rejected_client_that_sends_slowly_is_cut_off(monkeypatch):
    """However short the pauses are: the time is that of the whole rest."""
    monkeypatch.setattr(middleware, "DRAIN_SECONDS", 0.2)

    async def drip():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    happened, sent = request([], drip)
    assert sent[0]["status"] == 401
    assert happened.count("read") <= 5


def test_accepted_body_reaches_the_route():
    async def whole():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    assert request(KEY, whole)[0] == ["read", "route", "http.response.start", "http.response.body"]

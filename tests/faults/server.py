"""Faults of a server's clients and of the server itself: hostile requests, clients that come and go
by the hundred, hours of work, kills and drains."""

import asyncio
import contextlib
import json
import random
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
from tests.faults.harness import Trial, row
from tests.serving.conftest import Server, start, stop

CROWD, CROWD_SECONDS, GONE = 256, 600, 0.3
SOAK_SECONDS, WARM_SECONDS, SOAK_CLIENTS = 1_900, 300, 8
DRIFT = 0.01
READY_SECONDS = 15
PROMPTS = [f"def function_{number}(" for number in range(16)]
NEW_TOKENS = 24

PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/models/sample",
    "/",
    "/models/sample",
    "/score",
    "/autocomplete/sample",
    "/tokenize",
    "/health",
    "/metrics",
    "/nothing",
)
FIELDS = (
    "model", "prompt", "messages", "input", "inputs", "parameters", "input_data", "params",
    "context", "max_tokens", "n", "temperature", "top_p", "top_k", "min_p", "stop", "seed",
    "echo", "logprobs", "stream", "stream_options", "encoding_format", "dimensions", "user",
    "best_of", "suffix",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2, 8, 9, 1e9, -1e9, 2**63, 2**64, 10**40, 0.5, float("nan"),
    float("inf"), 1e-320, "", "sample", "a", "\x00", "\ud800", "é\u0301🌊", "x" * 5_000, [], [0],
    [-1], [10**9], ["a", "b"], [[1, 2]], [None], {}, {"a": {"b": [1]}}, {"inputs": "a"},
    [{"role": "user", "content": "a"}], {"question": "a", "context": "b"},
)  # fmt: skip


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = start("sample", "--precision", "fp32")
    yield server
    stop(server)


@row(
    12,
    "odd requests: wrong values, deep JSON, broken HTTP, thousands of headers, slow clients",
    "a status below 500 within 5 s, or a closed connection; the server stays healthy",
    full=20_000,
    sample=150,
)
def hostile_requests(folder: Path) -> Iterator[Trial]:
    with serving() as server:

        def trial(draw: random.Random) -> None:
            started = time.monotonic()
            status = sent(server, odd_request(draw))
            assert status is None or 100 < status < 500, status
            assert time.monotonic() - started < 5
            if draw.random() < 0.02:
                assert sent(server, request("GET", "/health", b"")) == 200

        yield trial


def odd_request(draw: random.Random) -> list[bytes]:
    """The pieces of one request, with a pause between any two."""
    path = draw.choice(PATHS)
    match draw.choices(("values", "text", "http", "headers", "slow"), (80, 10, 6, 2, 0.2))[0]:
        case "values":
            body = {"model": "sample", "prompt": "a", "max_tokens": 4}
            for _ in range(draw.randint(1, 4)):
                body[draw.choice(FIELDS)] = draw.choice(VALUES)
            return [request(draw.choice(("POST", "POST", "PUT")), path, json.dumps(body).encode())]
        case "text":
            depth = draw.randint(1, 20_000)
            texts = (b"[" * depth, b'{"a":' * depth, draw.randbytes(200), b"\xff" * depth, b"")
            return [request("POST", path, draw.choice(texts))]
        case "http":
            return [bytearray_with_damage(request("POST", path, b'{"model": "sample"}'), draw)]
        case "headers":
            many = "".join(f"X-{number}: {number}\r\n" for number in range(10_000))
            return [request("POST", path, b"{}", many)]
        case _:
            whole = request("POST", path, b'{"model": "sample", "prompt": "a", "max_tokens": 2}')
            cut = draw.randrange(1, len(whole))
            return [whole[:cut], whole[cut:]]


def bytearray_with_damage(whole: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(whole)
    for _ in range(draw.randint(1, 5)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    return bytes(damaged)


def request(method: str, path: str, body: bytes, headers: str = "") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def sent(server: Server, pieces: bytes | list[bytes]) -> int | None:
    """The status that comes back; None where the connection is closed, or where the server waits
    for the rest of what was damaged."""
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=4) as connection:
        try:
            for number, piece in enumerate([pieces] if isinstance(pieces, bytes) else pieces):
                if number:
                    time.sleep(1)
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(64)
        except OSError:  # closed by the server, or nothing within the time
            return None
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else None


async def completion(
    client: httpx2.AsyncClient, prompt: str, *, leave_after: int | None = None, **more: Any
) -> str | None:
    """The greedy text; None where the queue is full, or the client has left."""
    body = {
        "model": "sample", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0,
        "stream": True, **more,
    }  # fmt: skip
    text, number, is_whole = "", 0, False
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code == 429:
            assert answer.headers["Retry-After"] == "1"
            return None
        assert answer.status_code == 200, answer.status_code
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                is_whole = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                text += event["choices"][0]["text"]
                number += 1
                if leave_after is not None and number >= leave_after:
                    return None
    assert is_whole
    return text


def connect(server: Server, number: int) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=number)
    return httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=120, trust_env=False)


async def alone(server: Server) -> dict[str, str]:
    """What each prompt's text is without company."""
    async with connect(server, 1) as client:
        return {prompt: str(await completion(client, prompt)) for prompt in PROMPTS}


def metric(server: Server, name: str) -> float:
    lines = httpx2.get(f"{server.url}/metrics", trust_env=False).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@row(
    13,
    f"{CROWD} clients for 10 minutes, three in ten leaving in the middle",
    "each remaining client gets the text it would get alone, or 429; no request is left running",
    full=1,
    sample=0,
)
def crowd(folder: Path) -> Iterator[Trial]:
    with serving() as server:
        yield lambda draw: asyncio.run(_crowd(server, draw))


async def _crowd(server: Server, draw: random.Random) -> None:
    expected = await alone(server)
    until = time.monotonic() + CROWD_SECONDS
    counts = {"whole": 0, "left": 0, "refused": 0}

    async def one(client: httpx2.AsyncClient) -> None:
        while time.monotonic() < until:
            prompt = draw.choice(PROMPTS)
            leave = draw.randint(1, NEW_TOKENS - 4) if draw.random() < GONE else None
            text = await completion(client, prompt, leave_after=leave)
            if text is not None:
                assert text == expected[prompt], "another one's text"
                counts["whole"] += 1
            elif leave is not None:
                counts["left"] += 1
            else:
                counts["refused"] += 1
                await asyncio.sleep(draw.uniform(0.5, 1.5))

    async with connect(server, CROWD) as client:
        await asyncio.gather(*(one(client) for _ in range(CROWD)))
    print(f"row 13: {counts}", flush=True)
    assert min(counts.values()) > 100, counts
    await asyncio.sleep(2)
    assert metric(server, "stillhouse_running") == 0
    assert await alone(server) == expected


@row(
    14,
    f"{SOAK_SECONDS // 60} minutes of mixed work: streams, scores, suggestions, refusals",
    "memory at the end within 1 % of memory after five minutes",
    full=1,
    sample=0,
)
def soak(folder: Path) -> Iterator[Trial]:
    del folder
    server = start("sample", "--no-browser", "--precision", "fp32", command="write")
    yield lambda draw: asyncio.run(_soak(server, draw))
    stop(server)


async def _soak(server: Server, draw: random.Random) -> None:
    expected = await alone(server)
    process = psutil.Process(server.process.pid)
    started, memory = time.monotonic(), []
    number = 0

    async def one(client: httpx2.AsyncClient) -> None:
        nonlocal number
        while time.monotonic() - started < SOAK_SECONDS:
            prompt = draw.choice(PROMPTS)
            match draw.choice(("stream", "leave", "several", "scores", "page", "refused")):
                case "stream":
                    assert await completion(client, prompt) in (expected[prompt], None)
                case "leave":
                    await completion(client, prompt, leave_after=3)
                case "several":
                    await completion(client, prompt, n=3, temperature=1, seed=draw.randrange(99))
                case "scores":
                    body = {"model": "sample", "prompt": prompt, "max_tokens": 1, "echo": True}
                    found = await client.post("/v1/completions", json={**body, "logprobs": 5})
                    assert found.status_code in (200, 429)
                case "page":
                    body = {"model": "sample", "text": prompt * draw.randint(1, 50)}
                    for path in ("suggestions", "surprisal"):
                        found = await client.post(f"/editor/{path}", json=body)
                        assert found.status_code in (200, 429)
                case _:
                    found = await client.post("/v1/completions", json={"model": "x" * 1_000})
                    assert found.status_code == 404
            number += 1

    async def watch() -> None:
        while time.monotonic() - started < SOAK_SECONDS:
            memory.append((time.monotonic() - started, process.memory_info().rss))
            await asyncio.sleep(1)

    async with connect(server, SOAK_CLIENTS) as client:
        await asyncio.gather(watch(), *(one(client) for _ in range(SOAK_CLIENTS)))
    warm = [each for at, each in memory if WARM_SECONDS <= at < 2 * WARM_SECONDS]
    last = [each for at, each in memory if at >= SOAK_SECONDS - WARM_SECONDS]
    drift = statistics.median(last) / statistics.median(warm) - 1
    print(f"row 14: {number:,} requests, {max(warm) / 1e6:.0f} MB, {drift:+.2%}", flush=True)
    assert abs(drift) < DRIFT
    assert await alone(server) == expected


@row(
    15,
    "kill -9, or SIGTERM, with requests under way; then started again",
    f"ready within {READY_SECONDS} s; on SIGTERM every accepted request is answered in full",
    full=50,
    sample=2,
)
def killed(folder: Path) -> Iterator[Trial]:
    del folder

    def trial(draw: random.Random) -> None:
        started = time.monotonic()
        server = start("sample", "--precision", "fp32")
        seconds = time.monotonic() - started
        sign = draw.choice((signal.SIGKILL, signal.SIGTERM))
        try:
            assert seconds < READY_SECONDS
            whole = asyncio.run(_interrupted(server, sign, draw))
            _, errors = server.process.communicate(timeout=60)
        finally:
            server.process.kill()
        assert "Traceback" not in errors
        if sign == signal.SIGTERM:
            assert server.process.returncode == 0
            assert whole, "a request that was taken was not answered"

    yield trial


async def _interrupted(server: Server, sign: int, draw: random.Random) -> bool:
    """Whether all requests that were under way at the signal got their whole text."""
    expected = await alone(server)
    prompts = [draw.choice(PROMPTS) for _ in range(12)]
    async with connect(server, len(prompts)) as client:
        tasks = [asyncio.create_task(completion(client, prompt)) for prompt in prompts]
        while metric(server, "stillhouse_running") == 0:
            await asyncio.sleep(0.005)
        await asyncio.sleep(draw.uniform(0, 0.2))
        taken = metric(server, "stillhouse_running") + metric(server, "stillhouse_waiting")
        server.process.send_signal(sign)
        found = await asyncio.gather(*tasks, return_exceptions=True)
    texts = [(text, prompt) for text, prompt in zip(found, prompts, strict=True)]
    whole = [text for text, prompt in texts if text == expected[prompt]]
    wrong = [text for text, prompt in texts if isinstance(text, str) and text != expected[prompt]]
    assert not wrong
    return len(whole) >= taken

"""Two replicas under Ray Serve on one machine: the same dialects, and one of them may die."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
from tests.serving.conftest import Server, start, stop

import stillhouse

pytestmark = pytest.mark.slow  # a cluster takes half a minute to come and to go

TEXT = "The sea was"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = start("sample", "--precision", "fp32", "--replicas", "2")
    yield started
    assert stop(started) in (0, 130, 143)


def replicas(server: Server) -> list[int]:
    """The processes that answer."""
    below = psutil.Process(server.process.pid).children(recursive=True)
    found = []
    for each in below:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if "ServeReplica" in " ".join(each.cmdline()):
                found.append(each.pid)
    return found


def ask(client: openai.OpenAI) -> str:
    found = client.completions.create(model="sample", prompt=TEXT, max_tokens=12, temperature=0)
    return found.choices[0].text


def test_replicas_answer_identically_and_killed_one_is_replaced(server):
    """Greedy text from any replica is that of the model alone; a killed one is replaced."""
    expected = stillhouse.load("sample").generate(TEXT, greedy=True, max_new_tokens=12)[0]
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5)
    before = replicas(server)
    assert len(before) == 2
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda _: ask(client), range(48)))
    assert {TEXT + text for text in texts} == {expected}
    os.kill(before[0], signal.SIGKILL)
    assert TEXT + ask(client) == expected
    until = time.monotonic() + 60
    while len(replicas(server)) < 2 or set(replicas(server)) == set(before):
        assert time.monotonic() < until, "it was not replaced"
        time.sleep(0.5)


def test_replicas_stream(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    stream = client.completions.create(
        model="sample", prompt=TEXT, max_tokens=8, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].text for chunk in stream]
    assert len(pieces) > 4
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        assert b"stillhouse_requests_total" in answer.read()


def test_more_replicas_than_cpu_cores_are_rejected():
    line = [sys.executable, "-m", "stillhouse", "serve", "sample", "--replicas", "500"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "500 replicas need 500 CPU cores" in ended.stderr

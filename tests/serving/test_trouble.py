"""What goes wrong between a client and a server, and what is done about it."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.conftest import start, stop

import stillhouse

pytestmark = pytest.mark.e2e

LONG = {"model": "sample", "prompt": "def ", "max_tokens": 200, "temperature": 0}


def ask(url, path="/v1/completions", body=None, *, key=None, method=None):
    """Status, headers and JSON of an answer."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def metric(url, name):
    """The sum over its labels; a counter's time of creation is another metric of its name."""
    lines = ask(url, "/metrics")[2].decode().splitlines()
    own = (line for line in lines if line.startswith(name) and "_created" not in line)
    return sum(float(line.split()[-1]) for line in own)


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def small():
    """A server with a key, two slots, and a queue of three."""
    server = start(
        "sample", "--precision", "fp32", "--slots", "2", "--queue", "3",
        environment={"STILLHOUSE_API_KEY": "secret"},
    )  # fmt: skip
    yield server
    stop(server)


@pytest.mark.parametrize("key", [None, "", "other", "secret "])
def test_wrong_api_key_is_rejected(small, key):
    """On every path but the one that says whether the server is there."""
    for path in ("/v1/models", "/metrics", "/openapi.json", "/tokenize"):
        status, headers, _ = ask(small.url, path, key=key)
        assert status == 401
        assert headers["WWW-Authenticate"] == "Bearer"
    assert ask(small.url, "/health")[0] == 200
    assert ask(small.url, "/v1/models", key="secret")[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'{"model": "sample", "prompt": "a", "temperature": NaN}',
        b'{"model": "sample", "prompt": "a", "temperature": Infinity}',
        b'{"model": "sample", "prompt": "a", "n": 1e9}',
        b'{"model": "sample", "prompt": "a", "max_tokens": 99999999999999999999999999}',
        b'{"model": "sample", "prompt": [' + b"[" * 5_000 + b"]" * 5_000 + b"]}",
        b'{"model": "sample", "prompt": "\xff"}',
        b'{"model": "sample", "prompt": "\\ud800"}',
        b'{"model": 3, "prompt": "a"}',
        b'{"model": "sample", "prompt": {}}',
        json.dumps({**LONG, "prompt": "x" * 900_000}).encode(),
    ],
    ids=range(13),
)
def test_malformed_body_is_rejected(server, body):
    """With 400 and words, at once; the server is well afterwards."""
    started = time.monotonic()
    status, _, answer = ask(server.url, body=body)
    assert status == 400, answer
    assert json.loads(answer)["error"]["message"]
    assert time.monotonic() - started < 5
    assert ask(server.url, "/health")[0] == 200


def test_oversized_body_is_rejected(server):
    """Whether its length is said beforehand or only found."""
    status, _, answer = ask(server.url, body=b" " * (2**20 + 1))
    assert status == 413
    assert "1,048,576 bytes" in json.loads(answer)["error"]["message"]
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        for _ in range(17):
            connection.sendall(chunk)
        assert b" 413 " in connection.recv(200)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/nothing", "GET", 404), ("/v1/completions", "GET", 405), ("/v1/models/no", "GET", 404)],
)
def test_unknown_path_or_method_is_json_error(server, path, method, status):
    """In JSON, like all else."""
    found, _, answer = ask(server.url, path, method=method)
    assert found == status
    assert json.loads(answer)["error"]


def test_foreign_host_header_is_rejected(server):
    """A page elsewhere that lets its own name point here cannot use the model."""
    request = urllib.request.Request(server.url + "/v1/models", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    with caught.value as answer:
        assert answer.code == 400


def test_full_queue_is_429_with_retry_after(small):
    """Two run and three wait; further requests are rejected at once, all others answered."""
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, small.url, body=LONG, key="secret") for _ in range(12)]
        answers = [each.result() for each in asked]
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 5
    texts = {json.loads(body)["choices"][0]["text"] for status, _, body in answers if status == 200}
    assert len(texts) == 1
    refused = [headers for status, headers, _ in answers if status == 429]
    assert all(headers["Retry-After"] == "1" for headers in refused)


def test_rejected_stream_is_429(small):
    """However many ask at the same moment: 429, not an error in the middle of a 200."""
    body = {**LONG, "stream": True}
    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(ask, small.url, body=body, key="secret") for _ in range(24)]
        answers = [each.result() for each in asked]
    assert {status for status, _, _ in answers} == {200, 429}
    for status, _, answer in answers:
        assert status == 429 or answer.endswith(b"data: [DONE]\n\n")


def test_more_prompts_than_capacity_is_400(small):
    """More prompts than its slots and its queue hold: a 400, not a 429."""
    body = {"model": "sample", "prompt": ["a"] * 6, "max_tokens": 1}
    status, _, answer = ask(small.url, body=body, key="secret")
    assert status == 400
    assert "6 prompts exceed the 5" in json.loads(answer)["error"]["message"]


def test_tokenize_and_prompt_token_metric(server):
    """By `/tokenize` as the model does, and by `/metrics` as Prometheus reads it."""
    status, _, answer = ask(server.url, "/tokenize", {"prompt": "def main():"})
    ids = stillhouse.load("sample", offline=True).encode("def main():")
    expected = {"tokens": ids, "count": len(ids), "max_model_len": 256}
    assert (status, json.loads(answer)) == (200, expected)
    before = metric(server.url, "stillhouse_prompt_tokens")
    ask(server.url, body={"model": "sample", "prompt": "def main():", "max_tokens": 1})
    assert metric(server.url, "stillhouse_prompt_tokens") == before + len(ids)
    with urllib.request.urlopen(f"{server.url}/metrics") as found:
        families = list(text_string_to_metric_families(found.read().decode()))
    answered = [sample for each in families for sample in each.samples if "status" in sample.labels]
    assert any(sample.labels["status"] == "200" for sample in answered)


def test_disconnect_frees_the_slot(server):
    """In the middle of a stream, and while it waits for a whole answer."""
    port = int(server.url.rpartition(":")[2])
    for stream in (True, False):
        body = json.dumps({**LONG, "stream": stream}).encode()
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        wait_for(lambda: metric(server.url, "stillhouse_running") > 0)
        connection.close()
        wait_for(lambda: metric(server.url, "stillhouse_running") == 0)


def test_concurrent_clients_get_their_own_text(server):
    """Forty at once, a third of which leave early: greedy text is what each would get alone."""
    prompts = [f"def function_{number}(" for number in range(40)]
    body = {**LONG, "max_tokens": 24}
    alone = [
        json.loads(ask(server.url, body={**body, "prompt": prompt})[2])["choices"][0]["text"]
        for prompt in prompts[:4]
    ]
    found: dict[int, str] = {}

    def one(number):
        asked = {**body, "prompt": prompts[number], "stream": True}
        request = urllib.request.Request(
            server.url + "/v1/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = ""
            for line in answer:
                if line.startswith(b"data: {"):
                    if number % 3 == 2:
                        return
                    text += json.loads(line[6:])["choices"][0]["text"]
        found[number] = text

    threads = [threading.Thread(target=one, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in (0, 1, 3)] == [alone[number] for number in (0, 1, 3)]
    assert len(found) == 27
    assert len({*found.values()}) > 1
    wait_for(lambda: metric(server.url, "stillhouse_running") == 0)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_accepted_requests(sign):
    """The request under way is answered in full, a new one is not taken, and it ends with 0."""
    server = start("sample", "--precision", "fp32")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server.url, body=LONG)
        wait_for(lambda: metric(server.url, "stillhouse_running") > 0)
        server.process.send_signal(sign)
        status, _, answer = asked.result()
    assert status == 200
    assert json.loads(answer)["usage"]["completion_tokens"] == 200
    _, errors = server.process.communicate(timeout=30)
    assert server.process.returncode == 0
    assert "Traceback" not in errors
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url + "/health", timeout=5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["./absent/folder"], 4, "is not a model folder"),
        (["sample", "sample"], 2, "Two models have the name sample"),
        (["sample", "--host", "0.0.0.0"], 2, "Set a key"),
        (["sample", "--precision", "fp9"], 2, "choose from auto, fp32, bf16, int8"),
    ],
)
def test_invalid_serve_arguments_exit_with_message(arguments, code, message):
    """At once, and with the exit code of its kind; nothing is left running."""
    command = [sys.executable, "-m", "stillhouse", "serve", *arguments, "--offline", "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_address_in_use_is_reported_before_loading(server):
    """With the address, and what to do."""
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "stillhouse", "serve", "sample", "--offline", "--port", port]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert f"port {port} (Address already in use)" in result.stderr
    assert "ready at" not in result.stderr

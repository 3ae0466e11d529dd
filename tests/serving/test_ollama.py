"""Ollama's dialect, with Ollama's own client."""

import json
from collections.abc import Iterator

import httpx
import numpy as np
import ollama
import pytest
from ollama import _types as client_types
from starlette.testclient import TestClient
from tests.serving.conftest import URL

import stillhouse
from stillhouse.serving.dialects import ollama as dialect

PROMPT = "def main():"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
GREEDY = {"temperature": 0, "num_predict": 8, "repeat_penalty": 1.0}
DURATIONS = ("total_duration", "prompt_eval_duration", "eval_duration")


class InProcess(httpx.BaseTransport):
    """Ollama's client sends to the application in this process."""

    def __init__(self, http: TestClient) -> None:
        self._http = http

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        found = self._http.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        return httpx.Response(found.status_code, headers=found.headers, content=found.content)


@pytest.fixture
def client(http) -> Iterator[ollama.Client]:
    with ollama.Client(host=URL, transport=InProcess(http)) as found:
        yield found


def test_generate_continues_the_prompt_with_counts_and_durations(client):
    """Greedy text is that of the Python API; durations are nanoseconds."""
    found = client.generate("sample", PROMPT, options=GREEDY)
    sample = stillhouse.load("sample", offline=True)
    (expected,) = sample.generate(PROMPT, max_new_tokens=8, greedy=True)
    assert PROMPT + found.response == expected
    assert (found.done, found.done_reason, found.eval_count) == (True, "length", 8)
    assert found.prompt_eval_count == len(sample.prompt_ids(PROMPT))
    total, prefill, decode = (found[name] for name in DURATIONS)
    assert total == prefill + decode
    assert 10**5 < total < 10**11


@pytest.mark.parametrize("options", [GREEDY, {"seed": 3, "num_predict": 12, "top_k": 0}])
def test_stream_is_the_same_text_in_pieces(client, options):
    """Of generation and of a conversation; the last piece has no text, but the counts."""
    whole = client.generate("sample", PROMPT, options=options)
    pieces = list(client.generate("sample", PROMPT, options=options, stream=True))
    assert "".join(piece.response for piece in pieces) == whole.response
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == whole.eval_count
    answer = client.chat("sample", MESSAGES, options=options)
    parts = client.chat("sample", MESSAGES, options=options, stream=True)
    assert "".join(part.message.content for part in parts).strip() == answer.message.content
    assert answer.message.role == "assistant"


def test_stream_is_lines_of_json(http):
    """By default, as Ollama's is; whole with `stream: false`."""
    body = {"model": "sample", "prompt": PROMPT, "options": GREEDY}
    answer = http.post("/api/generate", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert {"model", "created_at", "response", "done"} == events[0].keys()
    whole = http.post("/api/generate", json={**body, "stream": False})
    assert whole.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("option", "same"),
    [
        ({"seed": 3}, True),
        ({"num_thread": 2, "use_mmap": True, "num_gpu": 0, "mirostat": 0, "num_ctx": 256}, True),
        ({"top_k": 1}, False),
        ({"temperature": 3.0}, False),
        ({"repeat_penalty": 5.0}, False),
        ({"min_p": 1.0}, False),
        ({"typical_p": 0.05}, False),
        ({"top_p": 0.01}, False),
    ],
)
def test_options_change_what_they_name(client, option, same):
    settings = {"seed": 3, "num_predict": 24}
    first = client.generate("sample", PROMPT, options=settings).response
    other = client.generate("sample", PROMPT, options={**settings, **option}).response
    assert (first == other) is same


def test_stop_and_length_end_a_response(client):
    text = client.generate("sample", PROMPT, options={**GREEDY, "num_predict": 20}).response
    word = text.split()[2]
    cut = client.generate("sample", PROMPT, options={**GREEDY, "num_predict": 20, "stop": [word]})
    assert cut.response == text[: text.index(word)]
    assert cut.done_reason == "stop"
    room = client.generate("sample", PROMPT, options={**GREEDY, "num_predict": -1, "num_ctx": 20})
    assert (room.prompt_eval_count or 0) + (room.eval_count or 0) <= 20


def test_a_chat_template_applies_unless_raw(client):
    """`picky` has a template that is the first message alone, and a conversation begins with the
    user."""
    plain = client.generate("picky", PROMPT, options=GREEDY)
    chat = client.chat("picky", [{"role": "user", "content": PROMPT}], options=GREEDY)
    assert plain.response.strip() == chat.message.content
    assert client.generate("picky", PROMPT, raw=True, options=GREEDY).done
    with pytest.raises(ollama.ResponseError, match="roles must alternate"):
        client.generate("picky", PROMPT, system="Be brief.", options=GREEDY)


def test_a_request_without_a_prompt_loads_the_model(client):
    assert client.generate("sample").done_reason == "load"
    assert client.chat("sample").done_reason == "load"


def test_embed_gives_embeddings_of_length_one(client):
    found = client.embed("minilm", ["a", "b"])
    assert np.allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-5)
    assert found.prompt_eval_count == 2
    one = client.embed("minilm", "a", truncate=True)
    assert np.allclose(one.embeddings[0], found.embeddings[0], atol=1e-5)


def test_models_are_listed_and_described(client, http):
    """A name with Ollama's default tag is the same model."""
    listed = {each.model: each for each in client.list().models}
    assert listed["sample"].details.family == "gpt2"
    assert listed["sample"].size > 10**6
    shown = client.show("sample:latest")
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo["gpt2.context_length"] == 256
    assert client.show("minilm").capabilities == ["embedding"]
    assert http.get("/api/version").json() == {"version": stillhouse.__version__}


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "absent"}, 404, "Model 'absent' not found; available: sample"),
        ({"model": "minilm"}, 400, "minilm does not generate text"),
        ({"color": 1}, 400, "Unknown parameter: color."),
        ({"options": {"color": 1}}, 400, "Unknown parameter: options.color."),
        ({"options": {"mirostat": 2}}, 400, "options.mirostat is not supported, got 2; omit it."),
        ({"options": {"temperature": -1}}, 400, "options.temperature: Input should be"),
        ({"options": {"num_ctx": 2}}, 400, "raise num_ctx (at most 256)"),
        ({"format": "json"}, 400, "format is not supported, got 'json'"),
        ({"raw": True, "system": "Be brief."}, 400, "put it in the prompt"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_have_ollama_s_form(http, client, change, status, message, stream):
    """One clear message, also where a stream was asked for."""
    body = {"model": "sample", "prompt": PROMPT, "stream": stream, **change}
    answer = http.post("/api/generate", json=body)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert message in answer.json()["error"]


def test_unknown_model_is_the_client_s_own_error(client):
    with pytest.raises(ollama.ResponseError, match="'absent' not found") as caught:
        client.chat("absent", MESSAGES)
    assert caught.value.status_code == 404


def test_null_is_as_good_as_absent(http):
    names = {*dialect.GenerateRequest.model_fields, *dialect.GenerateRequest.neutral}
    body = {**dict.fromkeys(names), "model": "sample", "prompt": PROMPT, "stream": False}
    options = {**dict.fromkeys({*dialect.Options.model_fields, *dialect.Options.neutral}), **GREEDY}
    assert http.post("/api/generate", json={**body, "options": options}).json()["done"]


@pytest.mark.parametrize(
    ("parameters", "body"),
    [
        (client_types.GenerateRequest, dialect.GenerateRequest),
        (client_types.ChatRequest, dialect.ChatRequest),
        (client_types.Message, dialect.ChatMessage),
        (client_types.EmbedRequest, dialect.EmbedRequest),
        (client_types.Options, dialect.Options),
        (client_types.ShowRequest, dialect.ShowRequest),
    ],
)
def test_every_ollama_client_parameter_is_known(parameters, body):
    """By its own type definitions: supported, or neutral and otherwise rejected by name."""
    assert set(parameters.model_fields) <= {*body.model_fields, *body.neutral}

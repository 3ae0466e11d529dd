"""Requests as odd clients send them: right, or refused in words that say what to send."""

import json

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tests.export.odd_models import odd_model
from tests.serving.conftest import URL, application
from transformers import PreTrainedTokenizerFast

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
GREEDY = {"model": "sample", "prompt": "def ", "max_tokens": 4, "temperature": 0}
DRAWN = {**GREEDY, "temperature": 1}
TEMPLATES = {
    "nodefault": {"tool_use": "X", "rag": "Y"},
    "broken": "{{ messages[0]['content'] + 3 }}",
    "unfinished": "{% if %}",
}


def text_of(http, **body) -> str:
    answer = http.post(COMPLETIONS, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_integral_float_is_accepted_as_integer(http):
    """As some languages write it; others are refused as before."""
    whole = text_of(http, **{**DRAWN, "seed": 3, "top_k": 9})
    body = {"model": "sample", "prompt": "def ", "max_tokens": 4.0, "temperature": 1.0}
    assert text_of(http, **{**body, "seed": 3.0, "top_k": 9.0}) == whole
    for name in ("max_tokens", "seed"):
        assert http.post(COMPLETIONS, json={**GREEDY, name: 2.5}).status_code == 400


def test_negative_seed_is_accepted(http):
    """OpenAI's go from -2**63; each draws its own text, the same again."""
    texts = [text_of(http, **{**DRAWN, "max_tokens": 12, "seed": -seed}) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    for seed in (-(2**63), 2**63 - 1):
        text_of(http, **{**DRAWN, "seed": seed})
    for seed in (-(2**63) - 1, 2**63):
        assert http.post(COMPLETIONS, json={**DRAWN, "seed": seed}).status_code == 400


def test_top_p_zero_is_greedy(http):
    """In OpenAI's range; beside a temperature of 0 it changes nothing."""
    assert text_of(http, **{**DRAWN, "top_p": 0}) == text_of(http, **GREEDY)
    assert text_of(http, **{**GREEDY, "top_p": 0}) == text_of(http, **GREEDY)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (COMPLETIONS, {"prompt": ["a"] * 65}, "prompt: List should have at most 64 items"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input: List should have at most 2048 items"),
        (COMPLETIONS, {"prompt": [[1], []]}, "prompt.1: List should have at least 1 item"),
    ],
)
def test_list_of_wrong_length_is_reported_as_such(http, path, body, message):
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)


def test_many_texts_are_embedded_in_order(http):
    """LangChain sends 1,000 at once; their vectors are those of each alone, in order."""
    texts = [f"text {number}" for number in range(130)]
    data = http.post("/v1/embeddings", json={"model": "minilm", "input": texts}).json()["data"]
    assert [each["index"] for each in data] == list(range(130))
    for number in (0, 63, 64, 129):
        alone = http.post("/v1/embeddings", json={"model": "minilm", "input": texts[number]})
        right = alone.json()["data"][0]["embedding"]
        np.testing.assert_allclose(data[number]["embedding"], right, atol=1e-5)


@pytest.mark.parametrize("neutral", [{"temperature": 1.0}, {"top_p": 1.0}, {"top_k": 0}])
def test_neutral_sampling_parameters_stay_greedy(http, neutral):
    """As in Text Generation Inference: a setting that changes nothing leaves a text greedy."""
    parameters = {"max_new_tokens": 8}
    plain = http.post("/", json={"inputs": "The", "parameters": parameters}).json()
    for more in (neutral, {**neutral, "do_sample": False}):
        found = http.post("/", json={"inputs": "The", "parameters": {**parameters, **more}})
        assert found.json() == plain


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/sample", "/docs"])
def test_head_returns_get_headers_without_body(http, path):
    """What monitors ask, and curl -I."""
    found, right = http.head(path), http.get(path)
    assert (found.status_code, right.status_code) == (200, 200)
    assert found.headers["content-type"] == right.headers["content-type"]
    assert found.content == b""


def test_head_of_unknown_path_is_404(http):
    assert http.head("/v1/models/nope").status_code == 404
    assert http.head(COMPLETIONS).status_code == 405


@pytest.mark.parametrize(
    ("headers", "body", "status", "message"),
    [
        ({"content-type": "text/plain"}, json.dumps(GREEDY).encode(), 400, "Content-Type is text/"),
        ({}, json.dumps(GREEDY).encode(), 400, "Content-Type is missing; send JSON"),
        (
            {"content-type": "application/x-www-form-urlencoded"},
            json.dumps(GREEDY).encode(),
            400,
            "as application/json",
        ),
        (
            {"content-type": "application/json", "content-encoding": "gzip"},
            b"x",
            415,
            "Content-Encoding is gzip; send the body uncompressed",
        ),
        ({"content-type": "application/json"}, b'{"prompt": "\xe9"}', 400, "send JSON in UTF-8"),
    ],
)
def test_unparsed_body_is_rejected_with_instructions(http, headers, body, status, message):
    """`curl -d` sends a form by default."""
    answer = http.post(COMPLETIONS, content=body, headers=headers)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> FastAPI:
    folders = []
    for name, template in TEMPLATES.items():

        def change(model, tokenizer, template=template):
            del model
            tokenizer.chat_template = template

        folders.append(odd_model(tmp_path_factory.mktemp("chat") / name, change))
    return application(tuple(map(str, folders)))


def test_broken_chat_template_is_a_client_error(templates):
    """Several named ones without a default, an error inside, and one that cannot be read."""
    with TestClient(templates, base_url=URL) as http:
        for name in TEMPLATES:
            body = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
            answer = http.post(CHATS, json=body)
            assert answer.status_code == 400
            assert "chat template" in answer.json()["error"]["message"]


def test_many_texts_as_token_ids_read_the_vocabulary_once(http, monkeypatch):
    """Reading it takes milliseconds, and a request may have two thousand texts."""
    calls = []
    read = PreTrainedTokenizerFast.get_vocab
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "get_vocab", lambda self: calls.append(1) or read(self)
    )
    answer = http.post("/v1/embeddings", json={"model": "minilm", "input": [[0]] * 200})
    assert len(answer.json()["data"]) == 200
    assert len(calls) <= 1


@pytest.mark.parametrize("penalty", [1e-163, 0.0, 11.0])
def test_extreme_repetition_penalty_is_rejected(http, penalty):
    """A tiny one made logits infinite, and the request failed with 500."""
    answer = http.post(COMPLETIONS, json={**DRAWN, "repetition_penalty": penalty})
    assert answer.status_code == 400
    assert "repetition_penalty" in answer.json()["error"]["message"]
    assert text_of(http, **{**DRAWN, "repetition_penalty": 0.01, "typical_p": 0.5})


MODELS = ("sample", "minilm", "masked", "classifier", "tagger", "answerer", "picky")
MESSAGES = [{"role": "user", "content": "Hi"}]
BODIES = {
    COMPLETIONS: {"prompt": "def ", "max_tokens": 2},
    CHATS: {"messages": MESSAGES, "max_tokens": 2},
    "/v1/embeddings": {"input": "def "},
    "/models/{model_id}": {"inputs": "def "},
    "/models/{model_id}/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
    "/autocomplete/{model_id}": {"context": "def "},
    "/score": {"input_data": ["def "]},
    "/tokenize": {"prompt": "def "},
    "/": {"inputs": "def "},
    "/api/generate": {"prompt": "def ", "options": {"num_predict": 2}},
    "/api/chat": {"messages": MESSAGES, "options": {"num_predict": 2}},
    "/api/embed": {"input": "def "},
    "/api/show": {},
    "/editor/suggestions": {"text": "def ", "max_new_tokens": 2},
    "/editor/chat": {"messages": MESSAGES, "max_new_tokens": 2},
    "/editor/surprisal": {"text": "def "},
    "/editor/draft": {"text": "def ", "max_new_tokens": 2},
    "/editor/neuron": {"layer": 0, "number": 0},
    "/editor/layers": {"text": "def "},
}


@pytest.mark.e2e  # seven models at nineteen routes
def test_every_kind_of_model_is_answered_or_refused_by_every_route(http):
    """Of whatever kind a model is, no route fails on it: it answers, or says what the model is."""
    paths = http.get("/openapi.json").json()["paths"]
    assert {path for path, methods in paths.items() if "post" in methods} == {*BODIES}
    for path, body in BODIES.items():
        answered = []
        for model in MODELS:
            named = {} if "{" in path or path in ("/", "/score") else {"model": model}
            if path == "/editor/draft":
                named = {"teacher": model, "student": model}
            found = http.post(path.replace("{model_id}", model), json={**body, **named})
            assert found.status_code in (200, 400, 404), (path, model, found.text)
            answered.append(found.status_code == 200)
        assert any(answered) or path == "/editor/neuron", path

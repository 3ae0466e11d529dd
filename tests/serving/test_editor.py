"""What the writing page asks of its server."""

import json

import pytest
from starlette.testclient import TestClient
from tests.serving.conftest import URL

import stillhouse
from stillhouse.inference.generation import Generation
from stillhouse.serving.config import ServerConfig
from stillhouse.serving.server import create_app

TEXT = "The old man went down to the har"


@pytest.fixture
def ask(http):
    """ask(path, body): the status, and the events or the problem."""

    def send(path: str, body: dict) -> tuple[int, list[dict]]:
        answer = http.post(path, json=body)
        if answer.status_code != 200:
            return answer.status_code, [answer.json()]
        return 200, [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]

    return send


def test_suggestion_events_have_index_and_finish_reason(ask):
    status, events = ask(
        "/editor/suggestions", {"model": "sample", "text": TEXT, "num_suggestions": 4, "seed": 1}
    )
    assert status == 200
    texts = [""] * 4
    for event in events:
        texts[event["index"]] += event["text"]
    assert len(set(texts)) == 4
    assert sorted(e["index"] for e in events if e.get("finish_reason") == "length") == [0, 1, 2, 3]


def test_long_text_is_truncated_to_its_end(ask):
    """Longer than the model's context: only its end is read, and is the same as that end alone."""
    end = "The wind rose and the sea with it. " * 200
    asked = {"model": "sample", "temperature": 0, "num_suggestions": 1}
    long = ask("/editor/suggestions", {**asked, "text": "Another beginning altogether. " + end})
    short = ask("/editor/suggestions", {**asked, "text": end})
    assert long[0] == 200
    assert long[1] == short[1]


def test_pinned_text_survives_truncation(ask):
    """It precedes as much of the text as fits."""
    asked = {
        "model": "sample",
        "temperature": 0,
        "num_suggestions": 1,
        "max_new_tokens": 40,
        "pinned": "def twice(",
    }
    asked |= {"token_healing": False}
    long = "The wind rose and the sea with it. " * 200
    _, pinned = ask("/editor/suggestions", {**asked, "text": long})
    model = stillhouse.load("sample", offline=True)
    always, ids = model.encode("def twice("), model.encode(long)
    kept = model.decode([*always, *ids[-(model.context - 40 - len(always)) :]])
    settings = Generation(greedy=True, max_new_tokens=40)
    assert "".join(event["text"] for event in pinned) == model.continuations(kept, settings)[0]
    status, (problem,) = ask("/editor/suggestions", {**asked, "text": "a", "pinned": long})
    assert status == 400
    assert "shorten the pinned text" in problem["error"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("suggestions", {"model": "nobody"}, "Model 'nobody' not found"),
        ("suggestions", {"model": "minilm"}, "minilm does not generate text."),
        (
            "suggestions",
            {"num_suggestions": 9},
            "num_suggestions: Input should be less than or equal to 8.",
        ),
        (
            "suggestions",
            {"max_new_tokens": 0},
            "max_new_tokens: Input should be greater than or equal to 1.",
        ),
        ("suggestions", {"best_of": 2}, "Unknown parameter: best_of."),
        ("surprisal", {"model": "minilm"}, "minilm does not generate text."),
        ("chat", {"text": None, "messages": []}, "messages: List should have at least 1 item"),
    ],
)
def test_invalid_editor_request_is_400_or_404(ask, path, body, message):
    status, (problem,) = ask(f"/editor/{path}", {"model": "sample", "text": TEXT, **body})
    assert status in (400, 404)
    assert message in problem["error"]


def test_encoder_as_draft_model_is_rejected(ask):
    status, (problem,) = ask(
        "/editor/draft", {"teacher": "sample", "student": "minilm", "text": TEXT}
    )
    assert (status, problem["error"]) == (400, "minilm does not generate text.")


def test_draft_can_be_repeated_immediately(ask):
    """Nothing of a finished draft is held on to."""
    body = {
        "teacher": "sample",
        "student": "sample",
        "text": TEXT,
        "temperature": 0,
        "max_new_tokens": 20,
    }
    for _ in range(2):
        status, events = ask("/editor/draft", body)
        assert status == 200
        assert events[-1]["num_accepted"] == events[-1]["num_drafted"] > 0


def test_editor_models_are_described(http):
    sample, minilm, *_ = http.get("/editor/models").json()["models"]
    assert (sample["task"], minilm["task"]) == ("text-generation", "feature-extraction")
    assert sample["precision"] == "fp32"
    assert "Do not use it" in sample["limitations"]


def test_server_without_editor_has_no_editor_routes(served_app):
    app = create_app(lambda worker: served_app.state.models, ServerConfig(models=()), wait=True)
    with TestClient(app, base_url=URL) as plain:
        for path in ("/editor/models", "/web/main.js"):
            assert plain.get(path).status_code == 404
        assert "main.js" not in plain.get("/").text


@pytest.mark.parametrize("name", ["..%2Fapp.py", "none.js", "%2e%2e/app.py"])
def test_only_files_of_the_page_are_served(http, name):
    assert http.get(f"/web/{name}").status_code == 404


def test_a_conversation_is_answered_as_by_openai_s_route(ask, http):
    """Without a template the messages are paragraphs; the answer ends before the next one."""
    messages = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "The sea"},
        {"role": "assistant", "content": "is wide."},
        {"role": "user", "content": "The wind"},
    ]
    body = {"model": "sample", "messages": messages, "temperature": 0, "top_p": 1}
    status, events = ask("/editor/chat", {**body, "max_new_tokens": 30})
    assert status == 200
    right = http.post("/v1/chat/completions", json={**body, "max_tokens": 30}).json()
    text = "".join(event["text"] for event in events)
    assert text.rstrip() == right["choices"][0]["message"]["content"]
    assert not text.startswith(" ")


@pytest.mark.e2e
def test_the_oldest_messages_of_a_long_conversation_are_left_out(ask):
    """The instructions stay."""
    system = {"role": "system", "content": "Answer."}
    old = {"role": "user", "content": "The wind rose and the sea with it. " * 40}
    answer = {"role": "assistant", "content": "Yes."}
    last = {"role": "user", "content": "The sea"}
    body = {"model": "sample", "temperature": 0, "max_new_tokens": 20}
    long = ask("/editor/chat", {**body, "messages": [system, old, answer, last]})
    assert long[0] == 200
    assert long == ask("/editor/chat", {**body, "messages": [system, last]})
    assert long != ask("/editor/chat", {**body, "messages": [last]})
    full = {**body, "max_new_tokens": 1_000}  # an answer as long as the context leaves
    assert ask("/editor/chat", {**full, "messages": [old, answer, last]})[0] == 200
    status, (problem,) = ask("/editor/chat", {**body, "messages": [old]})
    assert status == 400
    assert "Shorten the prompt" in problem["error"]


def test_the_page_knows_which_models_have_a_chat_template(http):
    models = http.get("/editor/models").json()["models"]
    assert [each["name"] for each in models if each["has_chat_template"]] == ["picky"]

"""The sample requests of DistilGPT2's card and of the first editor, answered in their shapes."""

import pytest

import stillhouse

CARD = {
    "input_data": ["My name is John and I am", "Once upon a time,"],
    "params": {
        "top_p": 1.0,
        "temperature": 0.8,
        "max_new_tokens": 20,
        "do_sample": True,
        "return_full_text": True,
    },
}


@pytest.fixture
def post(http):
    """post(path, body): the status and the JSON that comes back."""

    def send(path, body):
        answer = http.post(path, json=body)
        return answer.status_code, answer.json()

    return send


def test_score_continues_each_text(post):
    """A list of texts, each beginning with its prompt."""
    status, texts = post("/score", CARD)
    assert status == 200
    assert len(texts) == 2
    for prompt, text in zip(CARD["input_data"], texts, strict=True):
        assert text.startswith(prompt)
        assert len(text) > len(prompt)


def test_score_accepts_nested_parameters(post):
    """Texts and parameters inside `input_data`; without the prompt where that is asked for."""
    parameters = CARD["params"] | {"do_sample": False, "return_full_text": False}
    first = post("/score", {"input_data": CARD["input_data"], "params": parameters})
    inner = {"input_string": CARD["input_data"], "parameters": parameters}
    assert post("/score", {"input_data": inner}) == first
    sample = stillhouse.load("sample", offline=True)
    prompt = CARD["input_data"][0]
    (expected,) = sample.generate(prompt, greedy=True, max_new_tokens=20)
    assert prompt + first[1][0] == expected


def test_autocomplete_returns_three_seeded_sentences(post):
    """Three sentences, each with its time and its number of tokens; a seed gives them again."""
    asked = {"context": "import os", "top_p": 0.9, "temperature": 1.0, "max_time": 5, "seed": 4}
    status, found = post("/autocomplete/sample", asked)
    assert status == 200
    assert len(found["sentences"]) == 3
    assert all(each["value"] and each["tokens"] > 0 for each in found["sentences"])
    assert all(each["time"] > 0 for each in found["sentences"])
    again = post("/autocomplete/sample", asked)[1]["sentences"]
    assert [each["value"] for each in again] == [each["value"] for each in found["sentences"]]


def test_max_time_ends_autocomplete(post):
    """With what there is by then."""
    status, found = post("/autocomplete/sample", {"context": "import os", "max_time": 1e-6})
    assert status == 200
    assert all(each["tokens"] == 1 for each in found["sentences"])


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/score", {"input_data": []}, 400, "input_data"),
        (
            "/score",
            {"input_data": ["a"], "params": {"top_q": 1}},
            400,
            "Unknown parameter: params.top_q",
        ),
        ("/score", {"input_data": ["a"], "params": {"temperature": -1}}, 400, "greater than 0"),
        ("/autocomplete/other", {"context": "a"}, 404, "Model 'other' not found"),
        ("/autocomplete/minilm", {"context": "a"}, 400, "minilm does not generate text"),
    ],
)
def test_invalid_classic_request_is_rejected(post, path, body, status, message):
    """In the words of this dialect: `error` and `error_type`."""
    found, answer = post(path, body)
    assert found == status
    assert message in answer["error"]
    assert answer["error_type"]

"""Hugging Face's own client against the application: every task a model may do."""

import json

import numpy as np
import pytest
from huggingface_hub import InferenceClient, set_client_factory
from huggingface_hub.errors import BadRequestError, ValidationError
from huggingface_hub.utils._http import default_client_factory
from tests.serving.conftest import URL

import stillhouse
from stillhouse.inference.load import load_for_task

PROMPT = "def __init__(self"


@pytest.fixture
def client_of(http):
    """client_of(name=None): a client whose model is the application's first, or the named one."""

    def make(name=None):
        return InferenceClient(f"{URL}/models/{name}" if name else URL)

    set_client_factory(lambda: http)
    yield make
    set_client_factory(default_client_factory)


@pytest.fixture(scope="module")
def sample():
    return stillhouse.load("sample", offline=True)


def test_text_generation_equals_the_python_api(client_of, sample):
    """Greedy unless sampling is asked for; with the prompt where that is; the same for a seed."""
    client = client_of()
    text = client.text_generation(PROMPT, max_new_tokens=12)
    assert [PROMPT + text] == sample.generate(PROMPT, greedy=True, max_new_tokens=12)
    whole = client.text_generation(PROMPT, max_new_tokens=12, return_full_text=True)
    assert whole == PROMPT + text
    asked = {"max_new_tokens": 12, "do_sample": True}
    drawn = [client.text_generation(PROMPT, **asked, seed=3) for _ in range(2)]
    assert drawn[0] == drawn[1] != text


def test_details_list_tokens_and_logprobs(client_of):
    """Its tokens and the prompt's, with their log-probabilities, and why it ended."""
    found = client_of().text_generation(
        PROMPT, max_new_tokens=6, details=True, decoder_input_details=True
    )
    assert "".join(token.text for token in found.details.tokens) == found.generated_text
    assert "".join(token.text for token in found.details.prefill) == PROMPT
    assert found.details.prefill[0].logprob is None
    assert all(token.logprob <= 0 for token in found.details.tokens)
    assert found.details.finish_reason == "length"
    assert found.details.generated_tokens == 6


def test_streamed_chunks_join_to_the_whole_text(client_of):
    """Token by token; the last has all of it, and why it ended."""
    client = client_of()
    asked = {"max_new_tokens": 20, "temperature": 0.9, "seed": 1}
    whole = client.text_generation(PROMPT, **asked)
    assert "".join(client.text_generation(PROMPT, **asked, stream=True)) == whole
    *_, last = client.text_generation(PROMPT, **asked, stream=True, details=True)
    assert last.generated_text == whole
    assert last.details.finish_reason == "length"


def test_stop_sequence_ends_text(client_of):
    """And the reason is said."""
    client = client_of()
    text = client.text_generation(PROMPT, max_new_tokens=30)
    found = client.text_generation(PROMPT, max_new_tokens=30, stop=[text[10:13]], details=True)
    assert found.generated_text == text[: text.index(text[10:13])]
    assert found.details.finish_reason == "stop_sequence"


def test_chat_completion_by_inference_client(client_of):
    """The client puts its own path after the server's address."""
    answer = client_of().chat_completion(
        [{"role": "user", "content": "Why?"}], model="sample", max_tokens=8, seed=1
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens <= 8


def test_fill_mask_equals_the_python_api(client_of, served_folders):
    """The most likely tokens, with the whole sentence."""
    text = "what is [MASK] into"
    found = client_of("masked").fill_mask(text)
    expected = stillhouse.load(served_folders["masked"]).fill_mask(text)
    assert [(each.token_str, each.token) for each in found] == [
        (each.text, each.id) for each in expected
    ]
    assert found[0].score == pytest.approx(expected[0].probability)
    assert found[0].sequence == f"what is {expected[0].text} into"
    assert len(client_of("masked").fill_mask(text, top_k=2)) == 2


def test_classification_returns_all_labels_sorted(client_of, served_folders):
    """Every label with its probability, the most likely first."""
    text = "The still turns once more."
    found = client_of("classifier").text_classification(text)
    best = load_for_task(served_folders["classifier"]).classify(text)
    assert found[0].label == best["label"]
    assert found[0].score == pytest.approx(best["score"])
    assert sum(each.score for each in found) == pytest.approx(1)
    assert len(found) == 3
    assert len(client_of("classifier").text_classification(text, top_k=1)) == 1


def test_question_answering_equals_the_python_api(client_of, served_folders):
    """With the place of the answer."""
    question, context = "Who turns the still?", "The distiller of Islay does, in the old house."
    found = client_of("answerer").question_answering(question=question, context=context)
    expected = load_for_task(served_folders["answerer"]).answer(question, context)
    assert (found.answer, found.start, found.end) == (
        expected["answer"], expected["start"], expected["end"],
    )  # fmt: skip
    assert found.score == pytest.approx(expected["score"])


def test_handle_impossible_answer_returns_empty_answer(client_of):
    """`handle_impossible_answer`, of a model that finds nothing answered; false is the default."""
    asked = {"question": "Who turns the still?", "context": "The distiller of Islay does."}
    ask = client_of("answerer").question_answering
    found = ask(**asked, handle_impossible_answer=True)
    assert (found.answer, found.start, found.end) == ("", 0, 0)
    assert 0 < found.score < 1
    for value in (False, None):
        assert ask(**asked, handle_impossible_answer=value) == ask(**asked)
    assert ask(**asked).answer


def test_token_classification_equals_the_python_api(client_of, served_folders):
    """Each with its kind and place."""
    text = "The distiller of Islay in London"
    found = client_of("tagger").token_classification(text)
    expected = load_for_task(served_folders["tagger"]).tag(text)
    assert [(each.entity_group, each.word, each.start, each.end) for each in found] == [
        (each["entity_group"], each["word"], each["start"], each["end"]) for each in expected
    ]


def test_embeddings_and_sentence_similarity(client_of):
    """The vectors of texts, and how near they are to one of them."""
    client, texts = client_of("minilm"), ["A still.", "A distillery.", "Seven cats."]
    expected = stillhouse.load("minilm", offline=True).embed(texts)
    np.testing.assert_allclose(client.feature_extraction(texts[0]), expected[:1], atol=1e-6)
    asked = client.feature_extraction(texts[0], normalize=True, truncate=True)
    np.testing.assert_allclose(asked, expected[:1], atol=1e-6)
    near = client.sentence_similarity(texts[0], other_sentences=texts[1:])
    np.testing.assert_allclose(near, expected[1:] @ expected[0], atol=1e-6)
    assert near[0] > near[1]


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("masked", lambda c: c.fill_mask("no gap"), "has 0 mask tokens"),
        ("masked", lambda c: c.text_generation("text", stream=True), "Only one generated text"),
        ("classifier", lambda c: c.text_classification(""), "at least 1 character"),
        (None, lambda c: c.text_generation("text", watermark=True), "watermark is not supported"),
        (None, lambda c: c.text_generation("text", max_new_tokens=10**9), "the model takes"),
        (None, lambda c: c.text_generation("text", top_p=2.0), "less than or equal to 1"),
        (
            "minilm",
            lambda c: c.feature_extraction("text", normalize=False),
            "normalize is not supported",
        ),
        (
            "minilm",
            lambda c: c.feature_extraction("text", truncate=False),
            "truncate is not supported",
        ),
        ("answerer", lambda c: c.text_classification("text"), "valid dictionary"),
    ],
)
def test_invalid_hub_request_is_rejected_with_reason(client_of, name, call, message):
    """A 400 with words."""
    with pytest.raises((BadRequestError, ValidationError), match=message):
        call(client_of(name))


@pytest.mark.parametrize(
    ("name", "inputs", "is_nested"),
    [
        ("sample", ["def ", ""], False),
        ("masked", ["what is [MASK] into", "the [MASK] turns"], False),
        ("classifier", ["The still turns.", "Once more."], True),
        ("tagger", ["The distiller of Islay", "in London"], False),
        ("minilm", ["A still.", ""], True),
        ("answerer", [{"question": "Who?", "context": "The distiller of Islay."}] * 2, False),
    ],
)
def test_list_of_inputs_returns_list_of_results(http, name, inputs, is_nested):
    """One input of classes or vectors gives a list of one, as the Inference API does."""
    more = {"parameters": {"max_new_tokens": 5}} if name == "sample" else {}

    def ask(given):
        return http.post(f"/models/{name}", json={"inputs": given, **more}).json()

    found, alone = ask(inputs), [ask(each) for each in inputs]
    expected = [each[0] for each in alone] if is_nested else alone
    assert len(found) == len(inputs) == 2
    if name == "minilm":
        np.testing.assert_allclose(found, expected, atol=1e-6)
    else:
        assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize("inputs", [[], ["a"] * 65, [["a"]], [1]])
def test_invalid_input_list_is_rejected(http, inputs):
    assert http.post("/models/sample", json={"inputs": inputs}).status_code == 400
    assert http.post("/models/minilm", json={"inputs": inputs}).status_code == 400


def test_streaming_a_list_is_rejected(http):
    answer = http.post("/", json={"inputs": ["a", "b"], "stream": True})
    assert answer.status_code == 400
    assert "Only one generated text" in answer.json()["error"]


@pytest.mark.parametrize("path", ["", "/models/sample"])
def test_chat_completion_without_model_name(client_of, path):
    """The client sends a name of its own, and adds its path to the address."""
    client = client_of("sample") if path else client_of()
    answer = client.chat_completion([{"role": "user", "content": "Why?"}], max_tokens=4)
    assert answer.model == "sample"
    assert answer.usage.completion_tokens <= 4

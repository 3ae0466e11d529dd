"""OpenAI's own client against the application: what it asks for is what it gets."""

import math

import numpy as np
import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI
from tests.serving.conftest import URL

import stillhouse
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model

PROMPT = "def __init__(self"


@pytest.fixture
def client(http):
    return OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, http_client=http)


@pytest.fixture(scope="module")
def sample():
    return stillhouse.load("sample", offline=True)


def test_greedy_completion_equals_the_python_api(client, sample):
    """As the Python API gives it; how many tokens went in and came out; why it ended."""
    answer = client.completions.create(model="sample", prompt=PROMPT, max_tokens=12, temperature=0)
    (choice,) = answer.choices
    assert [PROMPT + choice.text] == sample.generate(PROMPT, greedy=True, max_new_tokens=12)
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == len(sample.encode(PROMPT))
    assert answer.object == "text_completion"


@pytest.mark.parametrize("n", [1, 3])
def test_streamed_chunks_join_to_the_whole_text(client, n):
    """The same seed gives the same texts, streamed or not; usage comes last where asked for."""
    asked = {"model": "sample", "prompt": PROMPT, "max_tokens": 20, "seed": 5, "n": n}
    whole = client.completions.create(**asked)
    texts, reasons, usage = [""] * n, [None] * n, None
    for chunk in client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert len(set(texts)) == n


def test_prompt_may_be_text_or_token_ids_or_lists(client, sample):
    """A text, texts, ids, lists of ids: the same continuation for the same prompt, in order."""
    other = "import os\n"
    ids = [sample.encode(PROMPT), sample.encode(other)]

    def texts(prompt):
        answer = client.completions.create(
            model="sample", prompt=prompt, max_tokens=8, temperature=0
        )
        return [choice.text for choice in answer.choices]

    assert texts([PROMPT, other]) == [*texts(PROMPT), *texts(other)]
    assert texts(ids) == texts([PROMPT, other])
    assert texts(ids[0]) == texts(PROMPT)


def test_logprobs_equal_a_plain_forward_pass(client, sample):
    """Of the prompt's tokens, echoed, and of the new ones; the chosen token is among the
    top ones with the same value; the first has none."""
    answer = client.completions.create(
        model="sample", prompt=PROMPT, max_tokens=4, temperature=0, echo=True, logprobs=3
    )
    (choice,) = answer.choices
    found = choice.logprobs
    assert choice.text.startswith(PROMPT)
    assert "".join(found.tokens) == choice.text
    ids = sample.encode(choice.text)
    assert len(ids) == len(found.tokens)
    _, model = load_model(resolve_folder("sample", offline=True))
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    for place, (token, value, top_logprobs) in enumerate(
        zip(found.tokens[1:], found.token_logprobs[1:], found.top_logprobs[1:], strict=True)
    ):
        assert value == pytest.approx(float(expected[place, ids[place + 1]]), abs=1e-4)
        assert top_logprobs[token] == value
        assert max(top_logprobs.values()) == pytest.approx(float(expected[place].max()), abs=1e-4)
    offsets = found.text_offset
    at = zip(offsets, found.tokens, strict=True)
    assert [choice.text[offset:][: len(token)] for offset, token in at] == found.tokens


def test_stop_string_is_excluded_from_text(client):
    """The text before it is, and the reason is said."""
    free = client.completions.create(model="sample", prompt=PROMPT, max_tokens=30, temperature=0)
    text = free.choices[0].text
    stop = text[10:13]
    stopped = client.completions.create(
        model="sample", prompt=PROMPT, max_tokens=30, temperature=0, stop=[stop, "never there"]
    )
    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_base_model_chats_with_plain_template(client):
    """It says something; the stream says the same; whom it speaks for next ends it."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    asked = {"model": "sample", "messages": messages, "max_tokens": 16, "seed": 1}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    message = answer.choices[0].message
    assert message.role == "assistant"
    streamed = client.chat.completions.create(**asked, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text.strip() == message.content
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in content)


def test_embeddings_equal_the_python_api(client):
    """As numbers and as base64 (which the client asks for by itself), whole and shortened."""
    texts = ["A still by the sea.", "A house on the hill."]
    expected = stillhouse.load("minilm", offline=True).embed(texts)
    answer = client.embeddings.create(model="minilm", input=texts)
    found = np.array([each.embedding for each in answer.data])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    plain = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    np.testing.assert_allclose([each.embedding for each in plain.data], expected, atol=1e-6)
    short = client.embeddings.create(model="minilm", input=texts[0], dimensions=8)
    vector = np.array(short.data[0].embedding)
    assert len(vector) == 8
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(vector, expected[0, :8] / np.linalg.norm(expected[0, :8]), atol=1e-6)
    assert answer.usage.prompt_tokens > 0


def test_models_are_listed_and_described(client):
    """By the names they are asked for."""
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["sample", "minilm"]
    assert client.models.retrieve("minilm").id == "minilm"
    with pytest.raises(NotFoundError, match="Model 'other' not found; available: sample"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_tokens": 100_000}, "the model takes"),
        ({"prompt": "a " * 5_000}, "Shorten the prompt"),
        ({"prompt": "a " * 5_000, "stream": True}, "Shorten the prompt"),
        ({"prompt": [10**9]}, "token ids the model does not know"),
        ({"n": 9}, "n: Input should be less than or equal to 8"),
        ({"n": 2, "temperature": 0}, "set n=1"),
        ({"logprobs": 21}, "logprobs: Input should be less than or equal to 20"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"stop": ["x" * 65]}, "at most 64 characters"),
        ({"stop": list("abcdefghi")}, "at most 8 items"),
        ({"prompt": []}, "prompt"),
        ({"best_of": 3}, "best_of is not supported, got 3; omit it, or set it to n, 1"),
        ({"extra_body": {"best_off": 3}}, "Unknown parameter: best_off"),
        ({"extra_body": {"best_off": None}}, "Unknown parameter: best_off"),
        ({"extra_body": {"top_k": "many"}}, "top_k: Input should be a valid integer"),
        ({"model": "minilm"}, "minilm does not generate text"),
        ({"stream": True, "echo": True, "logprobs": 1}, "cannot be streamed"),
    ],
)
def test_invalid_completion_request_is_rejected_with_reason(client, asked, message):
    """A 400 that says what and why; nothing is silently ignored."""
    whole = {"model": "sample", "prompt": PROMPT, "max_tokens": 4, **asked}
    with pytest.raises(BadRequestError, match=message) as caught:
        client.completions.create(**whole)
    assert caught.value.type == "invalid_request_error"


def test_language_model_cannot_embed(client):
    """What it was made for, not a 500."""
    with pytest.raises(BadRequestError, match="is for text-generation"):
        client.embeddings.create(model="sample", input="text")


@pytest.mark.parametrize("ids", [[-1], [10**9], [[5], [10**6]], [2**40]])
def test_embedding_unknown_token_ids_is_rejected(client, ids):
    """Not of something else."""
    with pytest.raises(BadRequestError, match="token ids the model does not know"):
        client.embeddings.create(model="minilm", input=ids)


def test_chat_template_rejection_is_reported(client):
    """In its own words, as the request's fault."""
    with pytest.raises(BadRequestError, match="roles must alternate"):
        client.chat.completions.create(
            model="picky", messages=[{"role": "assistant", "content": "a"}], max_tokens=2
        )
    asked = [{"role": "user", "content": "a"}]
    assert client.chat.completions.create(model="picky", messages=asked, max_tokens=2).choices


def test_text_offsets_of_multi_token_character(client):
    """The offsets after it are those of the text; a part of it has no bytes of its own text."""
    text = "a wave 🌊 and more"
    answer = client.completions.create(
        model="sample", prompt=text, max_tokens=0, echo=True, logprobs=1
    )
    found = answer.choices[0].logprobs
    assert found.tokens[-1] == text[found.text_offset[-1] :]
    asked = [{"role": "user", "content": "🌊"}]
    chat = client.chat.completions.create(
        model="sample", messages=asked, max_tokens=20, logprobs=True, seed=0
    )
    for token in chat.choices[0].logprobs.content:
        assert token.bytes is None or bytes(token.bytes).decode() == token.token


def test_top_logprobs_sum_to_at_most_one(client):
    """No probability is above one."""
    answer = client.completions.create(model="sample", prompt=PROMPT, max_tokens=6, logprobs=5)
    top_logprobs = answer.choices[0].logprobs.top_logprobs
    assert all(sum(map(math.exp, each.values())) <= 1 + 1e-5 for each in top_logprobs)

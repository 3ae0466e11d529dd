"""The clients that people have, with their own defaults, against a real server: OpenAI's, Hugging
Face's and LangChain's (lm-evaluation-harness has a file of its own)."""

import urllib.request

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_openai import OpenAI as LangChainOpenAI
from openai import OpenAI

pytestmark = pytest.mark.e2e

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]


@pytest.fixture
def openai(server):
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_client_streams_chat_and_embeds(openai):
    with openai.chat.completions.stream(
        model="sample", messages=MESSAGES, max_completion_tokens=6, seed=1
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    again = openai.chat.completions.create(
        model="sample", messages=MESSAGES, max_completion_tokens=6, seed=1, tools=[], n=1
    )
    assert text.strip() == again.choices[0].message.content
    # What it answered goes back as it came, with all its empty fields.
    history = [*MESSAGES, again.choices[0].message.model_dump(), *MESSAGES]
    assert openai.chat.completions.create(model="sample", messages=history, max_tokens=2).usage
    assert len(openai.embeddings.create(model="minilm", input=["a", "b"]).data) == 2


def test_huggingface_hub_client_needs_only_the_address(server):
    client = InferenceClient(server.url)
    chunks = list(client.chat_completion(MESSAGES, max_tokens=6, seed=1, stream=True))
    assert chunks[0].model == "sample"
    assert "".join(client.text_generation("def ", max_new_tokens=5, stream=True))
    vectors = InferenceClient(f"{server.url}/models/minilm").feature_extraction(["a", "b"])
    assert np.asarray(vectors).shape == (2, 384)
    path = InferenceClient(f"{server.url}/models/sample")
    assert path.chat_completion(MESSAGES, max_tokens=2).model == "sample"


def test_langchain_classes_work_with_default_settings(server):
    """Which send many neutral values, batch, and stream."""
    given = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model="sample", max_completion_tokens=5, seed=1, **given)
    answer = chat.invoke([("system", "Be brief."), ("user", "Why?")])
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] <= 5
    streamed = "".join(
        chunk.text for chunk in chat.stream([("system", "Be brief."), ("user", "Why?")])
    )
    assert streamed.strip() == answer.text
    text = LangChainOpenAI(model="sample", max_tokens=5, **given)
    assert len(text.batch(["def ", "import "])) == 2
    assert "".join(text.stream("def "))
    # Its own cutting needs a tokenizer from the network; the server cuts as the model was trained.
    vectors = OpenAIEmbeddings(model="minilm", check_embedding_ctx_length=False, **given)
    assert np.asarray(vectors.embed_documents(["a", "b"])).shape == (2, 384)


def test_browser_gets_the_page_at_the_root(server):
    """On a server with the writing page it is that, and the routes are described at /docs."""
    for path, shown in (("/", "Stillhouse: write"), ("/docs", "/v1/chat/completions")):
        with urllib.request.urlopen(server.url + path) as answer:
            assert shown in answer.read().decode()

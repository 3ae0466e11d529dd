"""What clients send without being asked: values that change nothing are taken as absent, and what
would change the result is refused by name."""

from typing import get_type_hints

import huggingface_hub.inference._generated.types as hub_types
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import (
    completion_create_params as chat_params,
)

from stillhouse.serving.dialects import hub, openai_schemas
from stillhouse.serving.schemas import RequestModel

COMPLETION = {"prompt": "def ", "max_tokens": 4, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def known(body: type[RequestModel]) -> set[str]:
    return {*body.model_fields, *body.neutral}


@pytest.mark.parametrize(
    ("parameters", "body"),
    [
        (
            completion_create_params.CompletionCreateParamsStreaming,
            openai_schemas.CompletionRequest,
        ),
        (chat_params.CompletionCreateParamsStreaming, openai_schemas.ChatRequest),
        (embedding_create_params.EmbeddingCreateParams, openai_schemas.EmbeddingsRequest),
        (ChatCompletionStreamOptionsParam, openai_schemas.StreamOptions),
        (ChatCompletionSystemMessageParam, openai_schemas.ChatMessage),
        (ChatCompletionUserMessageParam, openai_schemas.ChatMessage),
        (ChatCompletionAssistantMessageParam, openai_schemas.ChatMessage),
        (ChatCompletionContentPartTextParam, openai_schemas.ContentPart),
    ],
)
def test_every_openai_client_parameter_is_known(parameters, body):
    """By its own type definitions: supported, or neutral and otherwise refused by name."""
    assert set(get_type_hints(parameters)) <= known(body)


@pytest.mark.parametrize(
    ("parameters", "body"),
    [
        ("ChatCompletionInput", openai_schemas.ChatRequest),
        ("TextGenerationInputGenerateParameters", hub.TextParameters),
        ("FillMaskParameters", hub.FillMaskParameters),
        ("TextClassificationParameters", hub.ClassificationParameters),
        ("TokenClassificationParameters", hub.TaggingParameters),
        ("QuestionAnsweringParameters", hub.AnswerParameters),
        ("FeatureExtractionInput", hub.HubRequest),
    ],
)
def test_every_huggingface_hub_parameter_is_known(parameters, body):
    assert set(getattr(hub_types, parameters).__dataclass_fields__) <= known(body)


def bodies() -> list[type[RequestModel]]:
    found = [RequestModel]
    for each in found:
        found += [sub for sub in each.__subclasses__() if sub not in found]
    return found[1:]


@pytest.mark.parametrize("body", bodies(), ids=lambda body: body.__name__)
def test_null_means_absent_for_every_parameter(body):
    """Of every dialect; one that is not known stays refused."""
    assert body.__module__.startswith("stillhouse.serving.dialects.")
    required = {name for name, field in body.model_fields.items() if field.is_required()}
    nulls = dict.fromkeys(known(body) - required)
    assert RequestModel._without_neutral.__func__(body, nulls) == {}  # pyright: ignore
    assert RequestModel._without_neutral.__func__(body, {"bogus": None}) == {"bogus": None}  # pyright: ignore


NEUTRAL = {
    "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "n": 1,
    "seed": None, "stop": None, "stream": None, "stream_options": None, "top_p": None, "top_k": -1,
}  # fmt: skip
COMPLETION_NEUTRAL = {
    **NEUTRAL, "best_of": 1, "suffix": None, "logprobs": None, "echo": None,
    "logit_bias": {"50": 0},
}  # fmt: skip
CHAT_NEUTRAL = {
    **NEUTRAL, "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
    "store": False, "metadata": {"a": "b"}, "parallel_tool_calls": True, "service_tier": "auto",
    "logprobs": False, "top_logprobs": 0, "modalities": ["text"], "prediction": None,
    "reasoning_effort": None, "functions": [], "function_call": "auto", "verbosity": None,
    "max_completion_tokens": 4, "max_tokens": 400, "web_search_options": None, "audio": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "plain", "neutral"),
    [
        (COMPLETIONS, {**COMPLETION, "model": "sample"}, COMPLETION_NEUTRAL),
        (CHATS, {**CHAT, "model": "sample"}, CHAT_NEUTRAL),
        (CHATS, {**CHAT, "model": "sample"}, {"top_logprobs": None, "tool_choice": "auto"}),
    ],
)
def test_neutral_values_have_no_effect(http, path, plain, neutral):
    expected, found = http.post(path, json=plain), http.post(path, json={**plain, **neutral})
    assert (expected.status_code, found.status_code) == (200, 200), found.text
    assert found.json()["choices"] == expected.json()["choices"]
    assert found.json()["usage"] == expected.json()["usage"]


@pytest.mark.parametrize(
    ("path", "plain", "changed"),
    [
        (COMPLETIONS, COMPLETION, {"frequency_penalty": 0.5}),
        (COMPLETIONS, COMPLETION, {"frequency_penalty": False}),
        (COMPLETIONS, COMPLETION, {"logit_bias": {"50": -100}}),
        (COMPLETIONS, COMPLETION, {"suffix": "end"}),
        (COMPLETIONS, COMPLETION, {"best_of": 2}),
        (CHATS, CHAT, {"presence_penalty": -0.1}),
        (CHATS, CHAT, {"tools": [TOOL]}),
        (CHATS, CHAT, {"tool_choice": "required"}),
        (CHATS, CHAT, {"response_format": {"type": "json_object"}}),
        (CHATS, CHAT, {"store": True}),
        (CHATS, CHAT, {"modalities": ["text", "audio"]}),
        (CHATS, CHAT, {"reasoning_effort": "high"}),
        (CHATS, CHAT, {"prediction": {"type": "content", "content": "a"}}),
        ("/", {"inputs": "a"}, {"parameters": {"grammar": {"type": "json", "value": {}}}}),
        ("/models/masked", {"inputs": "a [MASK]"}, {"parameters": {"targets": ["b"]}}),
        ("/models/tagger", {"inputs": "a"}, {"parameters": {"aggregation_strategy": "none"}}),
        ("/models/classifier", {"inputs": "a"}, {"parameters": {"function_to_apply": "sigmoid"}}),
    ],
)
def test_unsupported_values_are_rejected_by_name(http, path, plain, changed):
    answer = http.post(path, json={**plain, **changed})
    name = next(iter(changed))
    if name == "parameters":
        name = f"parameters.{next(iter(changed[name]))}"
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert name in (error if isinstance(error, str) else error["message"])
    assert isinstance(error, str) or error["param"] == name
    assert "omit it" in answer.text


def test_placeholder_model_names_select_first_model_for_task(http):
    """Where the user gave no name, the first model that does the task answers."""
    for name in (None, "", "dummy", "tgi"):
        assert http.post(CHATS, json={**CHAT, "model": name}).json()["model"] == "sample"
        answer = http.post("/v1/embeddings", json={"input": "a", "model": name})
        assert answer.json()["model"] == "minilm"
    assert http.post(COMPLETIONS, json=COMPLETION).json()["model"] == "sample"
    assert http.post(COMPLETIONS, json={**COMPLETION, "model": "gpt"}).status_code == 404


def content_of(http, *messages):
    answer = http.post(CHATS, json={**CHAT, "model": "picky", "messages": list(messages)})
    return answer.status_code, answer.json().get("choices"), answer.json().get("error")


def test_text_content_parts_are_concatenated(http):
    """In order, with nothing between; `picky`'s template shows the model the first message."""
    plain = content_of(http, {"role": "user", "content": "def __init__"})
    parts = [{"type": "text", "text": text} for text in ("def ", "__init__")]
    message = {"role": "user", "content": parts, "name": "me"}
    assert content_of(http, message) == plain
    assert plain[0] == 200
    history = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": [],
               "annotations": [], "audio": None, "function_call": None}  # fmt: skip
    assert content_of(http, message, history) == plain
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    status, _, error = content_of(http, {"role": "user", "content": [*parts, image]})
    assert status == 400
    assert error["param"] == "messages.0.content.2.type"
    assert "'image_url'" in error["message"]


def test_unsupported_role_is_rejected_by_name(http):
    user = {"role": "user", "content": "a"}
    for message in ({"role": "tool", "content": "a", "tool_call_id": "b"}, {"role": "function"}):
        status, _, error = content_of(http, user, message)
        assert status == 400
        assert error["param"] == "messages.1.role"
        assert "'system', 'developer', 'user' or 'assistant'" in error["message"]


def test_message_that_the_chat_template_leaves_out_is_rejected(http):
    """`picky`'s template shows the model the first message alone."""
    user = {"role": "user", "content": "a"}
    status, _, error = content_of(http, user, user | {"content": "xyz"})
    assert status == 400
    assert "leaves out message 1 ('user': 'xyz')" in error["message"]


def test_inference_api_options_have_no_effect(http):
    """Those of the Inference API."""
    asked = {"inputs": "def ", "parameters": {"max_new_tokens": 3}}
    options = {"options": {"use_cache": False, "wait_for_model": True}}
    assert http.post("/", json=asked | options).json() == http.post("/", json=asked).json()

"""Requests of OpenAI's clients: completions, chat completions and embeddings.

Beside OpenAI's own parameters there are vLLM's top_k, min_p, typical_p and repetition_penalty.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stillhouse.inference.generation import Generation
from stillhouse.serving.schemas import (
    MAX_PROMPTS,
    MAX_SEQUENCES,
    MAX_TEXTS,
    MAX_TOP_LOGPROBS,
    MIN_TOP_P,
    APIError,
    Neutral,
    RequestModel,
    Seed,
    Stop,
    Stops,
    anything,
    only,
    unsupported,
)

TokenIds = Annotated[list[int], Field(min_length=1)]
Prompts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)
Texts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_TEXTS)]
)


def is_zero_bias(value: Any) -> bool:
    """Whether a `logit_bias` is empty or all zeros."""
    biases = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | list) and all(bias == 0 for bias in biases)


class StreamOptions(RequestModel):
    neutral: ClassVar[Mapping[str, Neutral]] = {"include_obfuscation": only(False)}

    include_usage: bool = False


class GenerationRequest(RequestModel):
    """The parameters that completions and chat completions share."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "frequency_penalty": only(0),
        "presence_penalty": only(0),
        "logit_bias": is_zero_bias,
        "user": anything,
    }

    model: str | None = None
    n: int = Field(1, ge=1, le=MAX_SEQUENCES)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, description="0 and -1 keep all tokens.")
    min_p: float = Field(0.0, ge=0, le=1)
    typical_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)
    stop: Stop | Stops | None = None
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def generation(self, max_new_tokens: int) -> Generation:
        """The generation settings; temperature 0 means greedy decoding."""
        greedy = self.temperature == 0
        if greedy and self.n > 1:
            raise APIError(400, "At temperature 0 all n choices would be equal; set n=1.")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Generation(
            max_new_tokens=max_new_tokens,
            num_return_sequences=self.n,
            temperature=1.0 if greedy else self.temperature,
            top_k=max(self.top_k, 0),
            top_p=max(self.top_p, MIN_TOP_P),
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            greedy=greedy,
            stop=stops,
            seed=self.seed,
        )


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`. An empty prompt starts a new document."""

    neutral: ClassVar[Mapping[str, Neutral]] = {**GenerationRequest.neutral, "suffix": only("")}

    prompt: Prompts = ""
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: int | None = Field(None, ge=1, description="Must equal n.")

    @model_validator(mode="after")
    def _best_of_equals_n(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n):
            raise unsupported("best_of", self.best_of, advice=f"omit it, or set it to n, {self.n}")
        return self


class ContentPart(RequestModel):
    """A part of a message's content."""

    neutral: ClassVar[Mapping[str, Neutral]] = {"prompt_cache_breakpoint": anything}

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, Mapping) else None
        if kind not in (None, "text"):
            raise unsupported("type", kind, advice="send parts of type 'text'")
        return given


class ChatMessage(RequestModel):
    neutral: ClassVar[Mapping[str, Neutral]] = {
        "annotations": only([]),
        "audio": only(),
        "function_call": only(),
        "refusal": only(""),
        "tool_calls": only([]),
        "type": only("text"),  # lm-evaluation-harness sends it beside the content
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(min_length=1)]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """The message as chat templates expect it, its parts joined."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": text, **named}


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        **GenerationRequest.neutral,
        "audio": only(),
        "function_call": only("none", "auto"),
        "functions": only([]),
        "metadata": anything,
        "modalities": only(["text"]),
        "moderation": only(),
        "parallel_tool_calls": anything,
        "prediction": only(),
        "prompt_cache_key": anything,
        "prompt_cache_options": anything,
        "prompt_cache_retention": anything,
        "reasoning_effort": only("none"),
        "response_format": only({"type": "text"}),
        "safety_identifier": anything,
        "service_tier": anything,
        "store": only(False),
        "tool_choice": only("none", "auto"),
        "tool_prompt": anything,  # huggingface_hub sends it without tools
        "tools": only([]),
        "verbosity": only("medium"),
        "web_search_options": only(),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1_000)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(
        None, ge=1, description="OpenAI's newer name of max_tokens, which it overrides."
    )
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)


class EmbeddingsRequest(RequestModel):
    """`POST /v1/embeddings`."""

    neutral: ClassVar[Mapping[str, Neutral]] = {"user": anything}

    model: str | None = None
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)

"""What OpenAI's clients send: the bodies of completions, chat completions and embeddings.

Beside OpenAI's own parameters there are those that vLLM has, under its names: top_k, min_p,
typical_p and repetition_penalty.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stillhouse.inference.generation import Generation
from stillhouse.serving.bodies import (
    Neutral,
    Seed,
    Stop,
    Stops,
    Strict,
    anything,
    only,
    unsupported,
)
from stillhouse.serving.limits import LIKELIEST, PROMPTS, SEQUENCES, TEXTS
from stillhouse.serving.problems import Problem

TokenIds = Annotated[list[int], Field(min_length=1)]
Prompts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=PROMPTS)]
)
Texts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=TEXTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=TEXTS)]
)
LEAST_TOP_P = 1e-9  # what 0 means: the likeliest token alone


def no_bias(value: Any) -> bool:
    """An empty `logit_bias`, or one of zeros."""
    biases = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | list) and all(bias == 0 for bias in biases)


class StreamOptions(Strict):
    neutral: ClassVar[Mapping[str, Neutral]] = {"include_obfuscation": only(False)}

    include_usage: bool = False


class Sampling(Strict):
    """What completions and chat completions have in common."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "frequency_penalty": only(0),
        "presence_penalty": only(0),
        "logit_bias": no_bias,
        "user": anything,
    }

    model: str | None = None
    n: int = Field(1, ge=1, le=SEQUENCES)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, description="0 and -1 take all.")
    min_p: float = Field(0.0, ge=0, le=1)
    typical_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    stop: Stop | Stops | None = None
    seed: Seed | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def generation(self, max_new_tokens: int) -> Generation:
        """The settings; a temperature of zero is greedy."""
        greedy = self.temperature == 0
        if greedy and self.n > 1:
            raise Problem(400, "At temperature 0 all n texts would be the same; ask for n=1.")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Generation(
            max_new_tokens=max_new_tokens,
            num_return_sequences=self.n,
            temperature=1.0 if greedy else self.temperature,
            top_k=max(self.top_k, 0),
            top_p=max(self.top_p, LEAST_TOP_P),
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            greedy=greedy,
            stop=stops,
            seed=self.seed,
        )


class CompletionBody(Sampling):
    """`POST /v1/completions`. Without a prompt, a new document begins."""

    neutral: ClassVar[Mapping[str, Neutral]] = {**Sampling.neutral, "suffix": only("")}

    prompt: Prompts = ""
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=LIKELIEST)
    best_of: int | None = Field(None, ge=1, description="As many as n: all that are generated.")

    @model_validator(mode="after")
    def _returns_all(self) -> "CompletionBody":
        if self.best_of not in (None, self.n):
            raise unsupported("best_of", self.best_of, advice=f"leave it out, or send n, {self.n}")
        return self


class ContentPart(Strict):
    """A part of a message."""

    neutral: ClassVar[Mapping[str, Neutral]] = {"prompt_cache_breakpoint": anything}

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, Mapping) else None
        if kind not in (None, "text"):
            raise unsupported("type", kind, advice="only parts of type 'text' are read")
        return given


class ChatMessage(Strict):
    neutral: ClassVar[Mapping[str, Neutral]] = {
        "annotations": only([]),
        "audio": only(),
        "function_call": only(),
        "refusal": only(""),
        "tool_calls": only([]),
        "type": only("text"),  # lm-evaluation-harness puts it beside the content
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(min_length=1)]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates read it: its parts joined."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": text, **named}


class ChatBody(Sampling):
    """`POST /v1/chat/completions`."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        **Sampling.neutral,
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
        "tool_prompt": anything,  # huggingface_hub's, for tools that there are none of
        "tools": only([]),
        "verbosity": only("medium"),
        "web_search_options": only(),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1_000)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(
        None, ge=1, description="OpenAI's newer name of max_tokens; it wins where both are given."
    )
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=LIKELIEST)


class EmbeddingsBody(Strict):
    """`POST /v1/embeddings`."""

    neutral: ClassVar[Mapping[str, Neutral]] = {"user": anything}

    model: str | None = None
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)

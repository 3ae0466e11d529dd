"""Ollama's dialect: text generation, chat, embeddings, and the list of models.

Streams, which are the default, are lines of JSON; durations are in nanoseconds. Sampling has the
default settings of Ollama; the repetition penalty applies to the whole text.
"""

import json
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from stillhouse import __version__
from stillhouse.inference.chat import Prompt, chat_template
from stillhouse.inference.generation import Generation
from stillhouse.serving.dialects.base import (
    FINISH_REASONS,
    Client,
    ClientDep,
    Dialect,
    GenerationResponse,
    ModelsDep,
)
from stillhouse.serving.schemas import (
    MAX_TEXTS,
    MIN_TOP_P,
    APIError,
    Neutral,
    RequestModel,
    Seed,
    Stop,
    Stops,
    anything,
    only,
)
from stillhouse.serving.served_model import (
    RequestOutput,
    ServedModel,
    ServedModels,
    StreamEvent,
)

router = APIRouter(tags=["Ollama"])
DIALECT = Dialect(
    router,
    error_body=lambda error: {"error": error.message},
    encode_event=lambda event: f"{json.dumps(event, ensure_ascii=False)}\n".encode(),
    media_type="application/x-ndjson",
    path_part="/api/",
)
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A stream of JSON lines, or the whole response.",
        "content": {
            "application/x-ndjson": {"schema": {"type": "string"}},
            "application/json": {"schema": {}},
        },
    }
}
NO_PROMPT = Prompt((), ())


class Options(RequestModel):
    """Options of generation. Those that load a model or place it on a device have no effect."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        **dict.fromkeys(
            (
                *("embedding_only", "f16_kv", "logits_all", "low_vram", "main_gpu", "mirostat_eta"),
                *("mirostat_tau", "num_batch", "num_gpu", "num_keep", "num_thread", "numa"),
                *("use_mlock", "use_mmap", "vocab_only"),
            ),
            anything,
        ),
        "frequency_penalty": only(0),
        "mirostat": only(0),
        "penalize_newline": only(True),
        "presence_penalty": only(0),
        "repeat_last_n": only(-1),
        "tfs_z": only(1),
    }

    num_ctx: int | None = Field(None, ge=1, description="Tokens of the prompt and the response.")
    num_predict: int = Field(-1, ge=-2, description="0 and less: up to num_ctx.")
    temperature: float = Field(0.8, ge=0, le=100)
    top_k: int = Field(40, ge=-1, description="0 and -1 keep all tokens.")
    top_p: float = Field(0.9, ge=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    typical_p: float = Field(1.0, gt=0, le=1)
    repeat_penalty: float = Field(1.1, ge=0.01, le=10)
    stop: Stop | Stops | None = None
    seed: Seed | None = None

    def generation(self, model: ServedModel, num_prompt: int) -> Generation:
        """The settings for a prompt of this many tokens.

        Raises:
            APIError: 400, the prompt fills `num_ctx`.
        """
        context = min(self.num_ctx or model.loaded.context, model.loaded.context)
        if num_prompt >= context:
            raise APIError(
                400,
                f"The prompt has {num_prompt} tokens, which leaves no room for a response in "
                f"{context}; shorten it, or raise num_ctx (at most {model.loaded.context}).",
                param="options.num_ctx",
            )
        room = context - num_prompt
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Generation(
            max_new_tokens=min(self.num_predict, room) if self.num_predict > 0 else room,
            temperature=self.temperature or 1.0,
            top_k=max(self.top_k, 0),
            top_p=max(self.top_p, MIN_TOP_P),
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repeat_penalty,
            greedy=self.temperature == 0,
            stop=stops,
            seed=self.seed,
        )


class ModelRequest(RequestModel):
    """What all requests have. `:latest` after a model's name has no effect."""

    neutral: ClassVar[Mapping[str, Neutral]] = {"keep_alive": anything}

    model: str | None = None

    def named(self, models: ServedModels, task: str | None = None) -> ServedModel:
        """The model; raises as `ServedModels.named`."""
        return models.named(self.model and self.model.removesuffix(":latest"), task)


class GenerationRequest(ModelRequest):
    """What generation and chat share.

    Attributes:
        is_answer: Whether the response is an answer in a conversation.
    """

    is_answer: ClassVar[bool] = False
    neutral: ClassVar[Mapping[str, Neutral]] = {
        **ModelRequest.neutral,
        "format": only(""),
        "logprobs": only(False),
        "think": only(False),
        "top_logprobs": only(0),
    }

    options: Options = Field(default_factory=lambda: Options.model_validate({}))
    stream: bool = True

    @abstractmethod
    async def prompt_of(self, model: ServedModel) -> Prompt:
        """The prompt. Without ids nothing is generated: clients load a model so."""

    @abstractmethod
    def content(self, text: str) -> dict[str, Any]:
        """The fields of the response for a piece of its text, or all of it."""


class GenerateRequest(GenerationRequest):
    """`POST /api/generate`."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        **GenerationRequest.neutral,
        **dict.fromkeys(("context", "images"), only([])),
        **dict.fromkeys(("height", "steps", "width"), only()),
        **dict.fromkeys(("suffix", "template"), only("")),
    }

    prompt: str = ""
    system: str = ""
    raw: bool = Field(False, description="Continue the prompt as it is, without a template.")

    async def prompt_of(self, model: ServedModel) -> Prompt:
        lm = model.causal_lm
        if self.raw and self.system:
            raise APIError(400, "raw has no system text; put it in the prompt.", param="system")
        if not self.prompt:
            return NO_PROMPT
        if self.raw or lm.tokenizer.chat_template is None:
            text = "\n\n".join(filter(None, (self.system, self.prompt)))
            return Prompt(lm.prompt_ids(text), ())
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, {"role": "user", "content": self.prompt}]
        return await model.run(model.chat_prompt, messages)

    def content(self, text: str) -> dict[str, Any]:
        return {"response": text}


class ChatMessage(RequestModel):
    """One message of a conversation."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        **dict.fromkeys(("images", "tool_calls"), only([])),
        **dict.fromkeys(("thinking", "tool_name"), only("")),
    }

    role: Literal["system", "user", "assistant"]
    content: str = ""


class ChatRequest(GenerationRequest):
    """`POST /api/chat`."""

    is_answer = True
    neutral: ClassVar[Mapping[str, Neutral]] = {**GenerationRequest.neutral, "tools": only([])}

    messages: list[ChatMessage] = Field(default=[], max_length=1_000)

    async def prompt_of(self, model: ServedModel) -> Prompt:
        messages = [message.model_dump() for message in self.messages]
        return await model.run(model.chat_prompt, messages) if messages else NO_PROMPT

    def content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}


class EmbedRequest(ModelRequest):
    """`POST /api/embed`. Embeddings have length one; texts are truncated to the context."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        **ModelRequest.neutral,
        "dimensions": only(),
        "options": only({}),
        "truncate": only(True),
    }

    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]


class ShowRequest(ModelRequest):
    """`POST /api/show`."""

    neutral: ClassVar[Mapping[str, Neutral]] = {"verbose": anything}


@router.post("/api/generate", responses=STREAMED)
async def generate(body: GenerateRequest, models: ModelsDep, client: ClientDep) -> Response:
    """Continue a prompt, in the model's chat template if it has one."""
    return await _respond(body, models, client)


@router.post("/api/chat", responses=STREAMED)
async def chat(body: ChatRequest, models: ModelsDep, client: ClientDep) -> Response:
    """Answer a conversation, in the model's chat template or a plain one."""
    return await _respond(body, models, client)


async def _respond(body: GenerationRequest, models: ServedModels, client: Client) -> Response:
    model = body.named(models, "text-generation")
    prompt = await body.prompt_of(model)
    if not prompt.ids:
        return JSONResponse(_frame(model, body, "") | {"done": True, "done_reason": "load"})
    settings = body.options.generation(model, len(prompt.ids))
    settings = prompt.with_stops(settings)
    outputs = model.prepare([prompt.ids], settings, is_answer=body.is_answer)
    return await client.respond(_Response(model, outputs, body), DIALECT, stream=body.stream)


@dataclass
class _Response(GenerationResponse):
    """The text in pieces, if it is streamed, and last a piece with the counts."""

    body: GenerationRequest
    started: int = field(default_factory=time.perf_counter_ns)

    def whole(self) -> dict[str, Any]:
        (sequence,) = self.outputs[0].sequences
        return self._last(sequence.text.rstrip() if sequence.is_answer else sequence.text)

    def chunks(self, output: RequestOutput, event: StreamEvent) -> Iterator[dict[str, Any]]:
        (sequence,) = output.sequences
        if sequence.new_text:
            yield _frame(self.model, self.body, sequence.new_text) | {"done": False}
        if sequence.reason is not None:
            yield self._last("")

    def _last(self, text: str) -> dict[str, Any]:
        (output,), ended = self.outputs, time.perf_counter_ns()
        (sequence,) = output.sequences
        return _frame(self.model, self.body, text) | {
            "done": True,
            "done_reason": FINISH_REASONS[sequence.reason or "stop"],
            "total_duration": ended - self.started,
            "load_duration": 0,
            "prompt_eval_count": len(output.request.prompt_ids),
            "prompt_eval_duration": output.prefilled - self.started,
            "eval_count": len(sequence.tokens),
            "eval_duration": ended - output.prefilled,
        }


def _frame(model: ServedModel, body: GenerationRequest, text: str) -> dict[str, Any]:
    """What each piece of a response has."""
    now = datetime.now(UTC).isoformat()
    return {"model": body.model or model.name, "created_at": now, **body.content(text)}


@router.post("/api/embed")
async def embed(body: EmbedRequest, models: ModelsDep, client: ClientDep) -> Response:
    """Embed texts with an embedding model."""
    model = body.named(models, "feature-extraction")
    started = time.perf_counter_ns()
    texts = [body.input] if isinstance(body.input, str) else body.input
    embeddings, num_tokens = await client.cancel_on_disconnect(model.embed(texts))
    return JSONResponse(
        {
            "model": body.model or model.name,
            "embeddings": embeddings.tolist(),
            "total_duration": time.perf_counter_ns() - started,
            "load_duration": 0,
            "prompt_eval_count": num_tokens,
        }
    )


@router.get("/api/version")
async def version() -> dict[str, str]:
    """The server's version."""
    return {"version": __version__}


@router.get("/api/tags")
async def list_models(models: ModelsDep) -> dict[str, Any]:
    """List the served models."""
    return {
        "models": [
            {
                "name": model.name,
                "model": model.name,
                "modified_at": _modified_at(model),
                "size": model.size_bytes,
                "details": _details(model),
            }
            for model in models
        ]
    }


@router.post("/api/show")
async def show(body: ShowRequest, models: ModelsDep) -> dict[str, Any]:
    """Describe one model."""
    model = body.named(models)
    family = model.loaded.model.config.model_type
    generates = model.loaded.pipeline_task == "text-generation"
    return {
        "modified_at": _modified_at(model),
        "details": _details(model),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": model.loaded.num_parameters,
            f"{family}.context_length": model.loaded.context,
        },
        "template": chat_template(model.loaded.tokenizer),
        "capabilities": ["completion" if generates else "embedding"],
    }


def _details(model: ServedModel) -> dict[str, Any]:
    family = model.loaded.model.config.model_type
    return {
        "format": model.file_format,
        "family": family,
        "families": [family],
        "parameter_size": f"{model.loaded.num_parameters / 1e6:.1f}M",
        "quantization_level": model.precision.upper(),
    }


def _modified_at(model: ServedModel) -> str:
    return datetime.fromtimestamp(model.created, UTC).isoformat()

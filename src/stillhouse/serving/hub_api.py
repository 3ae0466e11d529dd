"""Hugging Face's dialect: `{"inputs", "parameters", "stream"}`, for whatever a model does.

The answers have the shapes of its Inference API and, for generated text, of Text Generation
Inference; `huggingface_hub.InferenceClient` reads them, given this server's address as its model.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, TypeAdapter, ValidationError
from starlette.responses import JSONResponse, Response

from stillhouse.generation.batching import Ended, PromptRead, Request, ScoredToken
from stillhouse.generation.settings import Generation
from stillhouse.serving.bodies import Seed, Strict
from stillhouse.serving.depends import Catalog, Client, Served
from stillhouse.serving.hosted import Answer, Hosted, add
from stillhouse.serving.hosted import Continuation as Text
from stillhouse.serving.limits import LIKELIEST, PROMPTS, STOP_CHARACTERS, STOPS
from stillhouse.serving.problems import Problem, as_hub, from_validation
from stillhouse.serving.streaming import ANSWERS, event_stream

router = APIRouter(tags=["Hugging Face"])

NEW_TOKENS = 100
Finish = {"length": "length", "time": "length", "stop": "stop_sequence"}


class FeatureParameters(Strict):
    """Vectors have length one, and texts are cut to the context, as they were in training."""

    normalize: Literal[True] = True
    truncate: Literal[True] = True


class HubBody(FeatureParameters):
    """`POST /` and `POST /models/{id}`; what `inputs` and `parameters` hold depends on the task.
    InferenceClient puts the parameters of vectors beside the inputs."""

    inputs: str | list[str] | dict[str, Any]
    parameters: dict[str, Any] | None = None
    stream: bool = False


class TextParameters(Strict):
    """Of text generation. As in Text Generation Inference, a text is sampled where `do_sample` or
    a setting of sampling is given, and greedy otherwise."""

    max_new_tokens: int = Field(NEW_TOKENS, ge=1)
    do_sample: bool = False
    temperature: float | None = Field(None, gt=0, le=100)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: Seed | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]],
        Field(max_length=STOPS),
    ] = Field(default=[])
    return_full_text: bool = False
    truncate: int | None = Field(None, ge=1)
    details: bool = False
    decoder_input_details: bool = False
    top_n_tokens: int | None = Field(None, ge=0, le=LIKELIEST)

    def generation(self) -> Generation:
        sampling = (self.temperature, self.top_k, self.top_p, self.typical_p)
        return Generation(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature or 1.0,
            top_k=self.top_k or 0,
            top_p=self.top_p or 1.0,
            typical_p=self.typical_p or 1.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            greedy=not self.do_sample and all(each is None for each in sampling),
            stop=tuple(self.stop),
            seed=self.seed,
        )


class FillMaskParameters(Strict):
    top_k: int = Field(5, ge=1, le=100)


class LabelParameters(Strict):
    top_k: int | None = Field(None, ge=1)


class NoParameters(Strict):
    pass


class TagParameters(Strict):
    """Entities come grouped, however they are asked for to be."""

    aggregation_strategy: str | None = None


class Question(Strict):
    question: str = Field(min_length=1)
    context: str = Field(min_length=1)


class Similarity(Strict):
    source_sentence: str
    sentences: Annotated[list[str], Field(min_length=1, max_length=PROMPTS)]


@router.post("/", responses=ANSWERS)
async def infer(body: HubBody, catalog: Catalog, served: Served) -> Response:
    """Do what the first model does."""
    return await _infer(catalog.first, body, served)


@router.post("/models/{model_id:path}", responses=ANSWERS)
async def infer_by(model_id: str, body: HubBody, catalog: Catalog, served: Served) -> Response:
    """Do what the named model does."""
    return await _infer(catalog.named(model_id), body, served)


async def _infer(hosted: Hosted, body: HubBody, served: Client) -> Response:
    task = hosted.loaded.pipeline_task
    if task == "text-generation":
        return await _continue(hosted, body, served)
    if body.stream:
        raise Problem(400, "Only generated text can be streamed.", param="stream")
    answer = {
        "fill-mask": _fill_mask,
        "text-classification": _classify,
        "token-classification": _tag,
        "question-answering": _answer,
        "feature-extraction": _embed,
    }[task]
    return JSONResponse(await served.unless_gone(answer(hosted, body)))


def _parsed(kind: Any, given: Any, name: str) -> Any:
    """Inputs or parameters in the form that a task wants.

    Raises:
        Problem: they are not.
    """
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise from_validation(error.errors(), name) from error


def _text(body: HubBody) -> str:
    return _parsed(Annotated[str, Field(min_length=1)], body.inputs, "inputs")


async def _continue(hosted: Hosted, body: HubBody, served: Client) -> Response:
    prompt = _parsed(str, body.inputs, "inputs")
    parameters: TextParameters = _parsed(TextParameters, body.parameters or {}, "parameters")
    ids = hosted.loaded.prompt_ids(prompt)
    if parameters.truncate is not None:
        ids = ids[-parameters.truncate :]
    settings = parameters.generation()
    likeliest = parameters.top_n_tokens or 0
    request = Request(
        ids,
        settings,
        settings.drawn_seed(),
        likeliest if parameters.details or body.stream else None,
        echo=parameters.decoder_input_details,
        max_seconds=hosted.limits.seconds,
    )
    form = _TextForm(hosted, prompt, parameters, request)
    served.count(hosted, [request])
    if body.stream:
        return await event_stream(form.streamed(), served, as_hub)
    (answer,) = await served.unless_gone(hosted.answers([request]))
    return JSONResponse([form.whole(answer)])


class _TextForm:
    """The shape of a generated text."""

    def __init__(
        self, hosted: Hosted, prompt: str, parameters: TextParameters, request: Request
    ) -> None:
        self._hosted, self._prompt = hosted, prompt
        self._parameters, self._request = parameters, request

    def whole(self, answer: Answer) -> dict[str, Any]:
        (text,) = answer.continuations
        found: dict[str, Any] = {"generated_text": self._full(text.text)}
        if self._parameters.details:
            found["details"] = self._details(text) | {
                "prefill": [self._token(token) for token in answer.prompt],
                "tokens": [self._token(token) for token in text.tokens],
            }
            if self._parameters.top_n_tokens:
                found["details"]["top_tokens"] = [self._likeliest(each) for each in text.tokens]
        return found

    async def streamed(self) -> AsyncGenerator[str, None]:
        """An event a token; the last has the whole text. So each waits for the next event."""
        text, waiting = Text(), None
        async with aclosing(self._hosted.events([self._request])) as events:
            async for _, event in events:
                if isinstance(event, PromptRead):
                    continue
                add(text, event)
                if waiting is not None:
                    if isinstance(event, Ended):
                        waiting["token"]["text"] += event.text
                        waiting["generated_text"] = self._full(text.text)
                        waiting["details"] = self._details(text)
                    yield json.dumps(waiting, ensure_ascii=False)
                if not isinstance(event, Ended):
                    waiting = {
                        "index": len(text.tokens),
                        "token": self._token(event.token) | {"text": event.text},
                        "generated_text": None,
                        "details": None,
                    }
                    if self._parameters.top_n_tokens:
                        waiting["top_tokens"] = self._likeliest(event.token)

    def _full(self, text: str) -> str:
        return self._prompt + text if self._parameters.return_full_text else text

    def _details(self, text: Text) -> dict[str, Any]:
        assert text.reason is not None
        ended = text.tokens and text.tokens[-1].id in self._hosted.loaded.end_ids
        return {
            "finish_reason": "eos_token" if ended else Finish[text.reason],
            "generated_tokens": len(text.tokens),
            "input_length": len(self._request.prompt_ids),
            "seed": None if self._request.settings.greedy else self._request.seed,
        }

    def _token(self, token: ScoredToken) -> dict[str, Any]:
        return {
            "id": token.id,
            "text": self._hosted.loaded.token_text(token.id),
            "logprob": token.log_probability,
            "special": token.id in self._hosted.loaded.tokenizer.all_special_ids,
        }

    def _likeliest(self, token: ScoredToken) -> list[dict[str, Any]]:
        return [self._token(ScoredToken(*pair)) for pair in token.likeliest]


async def _fill_mask(hosted: Hosted, body: HubBody) -> Any:
    text, loaded = _text(body), hosted.loaded
    parameters = _parsed(FillMaskParameters, body.parameters or {}, "parameters")
    mask = loaded.tokenizer.mask_token
    found = await hosted.do(lambda: loaded.fill_mask(text, top_k=parameters.top_k))
    return [
        {
            "score": each.probability,
            "token": each.id,
            "token_str": each.text,
            "sequence": text.replace(str(mask), each.text),
        }
        for each in found
    ]


async def _classify(hosted: Hosted, body: HubBody) -> Any:
    text = _text(body)
    parameters = _parsed(LabelParameters, body.parameters or {}, "parameters")
    found = await hosted.do(lambda: hosted.loaded.label_scores(text))
    return [found[: parameters.top_k]]


async def _tag(hosted: Hosted, body: HubBody) -> Any:
    _parsed(TagParameters, body.parameters or {}, "parameters")
    return await hosted.do(hosted.loaded.tag, _text(body))


async def _answer(hosted: Hosted, body: HubBody) -> Any:
    asked = _parsed(Question, body.inputs, "inputs")
    _parsed(NoParameters, body.parameters or {}, "parameters")
    return await hosted.do(hosted.loaded.answer, asked.question, asked.context)


async def _embed(hosted: Hosted, body: HubBody) -> Any:
    """Vectors of texts; or, given `{source_sentence, sentences}`, how near they are."""
    if isinstance(body.inputs, dict):
        asked = _parsed(Similarity, body.inputs, "inputs")
        _parsed(NoParameters, body.parameters or {}, "parameters")
        texts = [asked.source_sentence, *asked.sentences]
        vectors = await hosted.do(hosted.loaded.embed, texts)
        return (vectors[1:] @ vectors[0]).tolist()
    _parsed(FeatureParameters, body.parameters or {}, "parameters")
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    _parsed(Annotated[list[str], Field(min_length=1, max_length=PROMPTS)], texts, "inputs")
    return (await hosted.do(hosted.loaded.embed, texts)).tolist()

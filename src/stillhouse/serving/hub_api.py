"""Hugging Face's dialect: `{"inputs", "parameters", "stream"}`, for whatever a model does.

The answers have the shapes of its Inference API and, for generated text, of Text Generation
Inference; `huggingface_hub.InferenceClient` reads them, given this server's address as its model.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import Field, TypeAdapter, ValidationError
from starlette.responses import JSONResponse, Response

from stillhouse.inference.engine.batcher import Ended, PrefillDone, Request, ScoredToken
from stillhouse.inference.generation import Generation
from stillhouse.serving.bodies import Neutral, Seed, Strict, anything, only
from stillhouse.serving.depends import Catalog, Client, Served
from stillhouse.serving.hosted import Answer, Hosted, add
from stillhouse.serving.hosted import Continuation as Text
from stillhouse.serving.limits import LIKELIEST, PROMPTS, STOP_CHARACTERS, STOPS
from stillhouse.serving.problems import Problem, as_hub, from_validation
from stillhouse.serving.streaming import ANSWERS, event_stream
from stillhouse.tasks.text_classification import TextClassification

router = APIRouter(tags=["Hugging Face"])

NEW_TOKENS = 100
Task = Callable[[Hosted, Any, dict[str, Any]], Awaitable[Any]]
Finish = {"length": "length", "time": "length", "stop": "stop_sequence"}


class FeatureParameters(Strict):
    """Vectors have length one, and texts are cut to the context, as they were in training."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "dimensions": only(),
        "encoding_format": only("float"),
        "normalize": only(True),
        "prompt_name": only(),
        "truncate": only(True),
        "truncation_direction": only("right", "Right"),
    }


class Options(Strict):
    """Of the Inference API; nothing is cached here, and a model is loaded or is not."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "use_cache": anything,
        "wait_for_model": anything,
        "use_gpu": anything,
    }


class HubBody(FeatureParameters):
    """`POST /` and `POST /models/{id}`; what `inputs` and `parameters` hold depends on the task.
    InferenceClient puts the parameters of vectors beside the inputs."""

    inputs: str | list[Any] | dict[str, Any]
    parameters: dict[str, Any] = Field(default={})
    options: Options = Options()
    stream: bool = False


class TextParameters(Strict):
    """Of text generation. As in Text Generation Inference, a text is sampled where `do_sample` or
    a setting of sampling is given that changes something, and greedy otherwise."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "adapter_id": only(),
        "best_of": only(1),
        "frequency_penalty": only(0),
        "grammar": only(),
        "num_return_sequences": only(1),
        "watermark": only(False),
    }

    max_new_tokens: int = Field(NEW_TOKENS, ge=1)
    do_sample: bool = False
    temperature: float | None = Field(None, gt=0, le=100)
    top_k: int | None = Field(None, ge=0)
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
    top_n_tokens: int = Field(0, ge=0, le=LIKELIEST)

    def generation(self) -> Generation:
        given = (self.temperature, self.top_k, self.top_p, self.typical_p)
        neutral = (1, 0, 1, 1)
        samples = any(value not in (None, none) for value, none in zip(given, neutral, strict=True))
        return Generation(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature or 1.0,
            top_k=self.top_k or 0,
            top_p=self.top_p or 1.0,
            typical_p=self.typical_p or 1.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            greedy=not (self.do_sample or samples),
            stop=tuple(self.stop),
            seed=self.seed,
        )


class FillMaskParameters(Strict):
    neutral: ClassVar[Mapping[str, Neutral]] = {"targets": only([])}

    top_k: int = Field(5, ge=1, le=100)


class LabelParameters(Strict):
    top_k: int | None = Field(None, ge=1)
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class NoParameters(Strict):
    pass


class AnswerParameters(Strict):
    neutral: ClassVar[Mapping[str, Neutral]] = {
        "align_to_words": only(True),
        "doc_stride": only(),
        "max_answer_len": only(),
        "max_question_len": only(),
        "max_seq_len": only(),
        "top_k": only(1),
    }

    handle_impossible_answer: bool = False


class TagParameters(Strict):
    """Words are tagged at their first token, and entities come grouped."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "aggregation_strategy": only("simple", "first"),
        "ignore_labels": only(["O"]),
        "stride": only(0),
    }


class Question(Strict):
    question: str = Field(min_length=1)
    context: str = Field(min_length=1)


class Similarity(Strict):
    source_sentence: str
    sentences: Annotated[list[str], Field(min_length=1, max_length=PROMPTS)]


@router.post("/", responses=ANSWERS)
async def infer(body: HubBody, catalog: Catalog, served: Served) -> Response:
    """Do what the first model does."""
    return await _infer(catalog.named(None), body, served)


@router.post("/models/{model_id:path}", responses=ANSWERS)
async def infer_by(model_id: str, body: HubBody, catalog: Catalog, served: Served) -> Response:
    """Do what the named model does."""
    return await _infer(catalog.named(model_id), body, served)


async def _infer(hosted: Hosted, body: HubBody, served: Client) -> Response:
    """A list of inputs gives a list with the result of each."""
    task = hosted.loaded.pipeline_task
    if body.stream and (isinstance(body.inputs, list) or task != "text-generation"):
        raise Problem(400, "Only one generated text can be streamed.", param="stream")
    if task == "text-generation":
        return await _continue(hosted, body, served)
    inputs = _several(body.inputs)
    if task == "feature-extraction" and isinstance(body.inputs, dict):
        work = _similarities(hosted, body)
    elif task == "feature-extraction":
        work = _embed(hosted, inputs, body.parameters)
    else:
        work = _one_by_one(TASKS[task], hosted, inputs, body.parameters)
    found = await served.unless_gone(work)
    # As the Inference API has it, one text has a list of one vector, or of one list of labels.
    is_alone = not isinstance(body.inputs, list) and task not in LISTS
    return JSONResponse(found[0] if is_alone else found)


async def _one_by_one(
    task: Task, hosted: Hosted, inputs: list[Any], parameters: dict[str, Any]
) -> list[Any]:
    """Each between two steps of what is generated, so that nobody waits for all of them."""
    return [await task(hosted, each, parameters) for each in inputs]


def _parsed(kind: Any, given: Any, name: str) -> Any:
    """Inputs or parameters in the form that a task wants.

    Raises:
        Problem: they are not.
    """
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise from_validation(error.errors(), name) from error


def _several(inputs: Any) -> list[Any]:
    """One or several inputs, as a list."""
    if not isinstance(inputs, list):
        return [inputs]
    return _parsed(Annotated[list[Any], Field(min_length=1, max_length=PROMPTS)], inputs, "inputs")


def _text(given: Any) -> str:
    return _parsed(Annotated[str, Field(min_length=1)], given, "inputs")


async def _continue(hosted: Hosted, body: HubBody, served: Client) -> Response:
    prompts = [_parsed(str, each, "inputs") for each in _several(body.inputs)]
    parameters: TextParameters = _parsed(TextParameters, body.parameters, "parameters")
    settings = parameters.generation()
    seed = settings.drawn_seed()
    forms = []
    for number, prompt in enumerate(prompts):
        ids = hosted.loaded.prompt_ids(prompt)
        if parameters.truncate is not None:
            ids = ids[-parameters.truncate :]
        request = Request(
            ids,
            settings,
            (seed + number) % 2**64,
            parameters.top_n_tokens if parameters.details or body.stream else None,
            echo=parameters.decoder_input_details,
            max_seconds=hosted.limits.seconds,
        )
        forms.append(_TextForm(hosted, prompt, parameters, request))
    requests = [form.request for form in forms]
    served.count(hosted, requests)
    if body.stream:
        return await event_stream(forms[0].streamed(), served, as_hub)
    answers = await served.unless_gone(hosted.answers(requests))
    found = [[form.whole(answer)] for form, answer in zip(forms, answers, strict=True)]
    return JSONResponse(found if isinstance(body.inputs, list) else found[0])


class _TextForm:
    """The shape of a generated text."""

    def __init__(
        self, hosted: Hosted, prompt: str, parameters: TextParameters, request: Request
    ) -> None:
        self._hosted, self._prompt = hosted, prompt
        self._parameters, self.request = parameters, request

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
        async with aclosing(self._hosted.events([self.request])) as events:
            async for _, event in events:
                if isinstance(event, PrefillDone):
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
            "input_length": len(self.request.prompt_ids),
            "seed": None if self.request.settings.greedy else self.request.seed,
        }

    def _token(self, token: ScoredToken) -> dict[str, Any]:
        return {
            "id": token.id,
            "text": self._hosted.loaded.token_text(token.id),
            "logprob": token.log_probability,
            "special": token.id in self._hosted.loaded.tokenizer.all_special_ids,
        }

    def _likeliest(self, token: ScoredToken) -> list[dict[str, Any]]:
        return [self._token(ScoredToken(*pair)) for pair in token.top_logprobs]


async def _fill_mask(hosted: Hosted, given: Any, parameters: dict[str, Any]) -> Any:
    text, loaded = _text(given), hosted.loaded
    asked: FillMaskParameters = _parsed(FillMaskParameters, parameters, "parameters")
    mask = loaded.tokenizer.mask_token
    found = await hosted.do(lambda: loaded.fill_mask(text, top_k=asked.top_k))
    return [
        {
            "score": each.probability,
            "token": each.id,
            "token_str": each.text,
            "sequence": text.replace(str(mask), each.text),
        }
        for each in found
    ]


async def _classify(hosted: Hosted, given: Any, parameters: dict[str, Any]) -> Any:
    text = _text(given)
    asked: LabelParameters = _parsed(LabelParameters, parameters, "parameters")
    task = hosted.loaded.task
    own = "none"
    if isinstance(task, TextClassification):
        own = "sigmoid" if task.recipe.multi_label else "softmax"
    if asked.function_to_apply not in (None, own):
        raise Problem(
            400,
            f"parameters.function_to_apply is {asked.function_to_apply!r}, but {hosted.name} was "
            f"trained with {own!r}; leave it out.",
            param="parameters.function_to_apply",
        )
    found = await hosted.do(lambda: hosted.loaded.label_scores(text))
    return found[: asked.top_k]


async def _tag(hosted: Hosted, given: Any, parameters: dict[str, Any]) -> Any:
    _parsed(TagParameters, parameters, "parameters")
    return await hosted.do(hosted.loaded.tag, _text(given))


async def _answer(hosted: Hosted, given: Any, parameters: dict[str, Any]) -> Any:
    asked: Question = _parsed(Question, given, "inputs")
    settings: AnswerParameters = _parsed(AnswerParameters, parameters, "parameters")
    impossible = settings.handle_impossible_answer
    return await hosted.do(
        lambda: hosted.loaded.answer(
            asked.question, asked.context, handle_impossible_answer=impossible
        )
    )


async def _embed(hosted: Hosted, texts: list[Any], parameters: dict[str, Any]) -> Any:
    _parsed(FeatureParameters, parameters, "parameters")
    return (await hosted.do(hosted.loaded.embed, _parsed(list[str], texts, "inputs"))).tolist()


async def _similarities(hosted: Hosted, body: HubBody) -> Any:
    """How near texts are to one of them."""
    asked: Similarity = _parsed(Similarity, body.inputs, "inputs")
    _parsed(NoParameters, body.parameters, "parameters")
    vectors = await hosted.do(hosted.loaded.embed, [asked.source_sentence, *asked.sentences])
    return (vectors[1:] @ vectors[0]).tolist()


LISTS = ("text-classification", "feature-extraction")
TASKS: dict[str, Task] = {
    "fill-mask": _fill_mask,
    "text-classification": _classify,
    "token-classification": _tag,
    "question-answering": _answer,
}

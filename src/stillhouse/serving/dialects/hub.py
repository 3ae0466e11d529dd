"""Hugging Face's dialect: `{"inputs", "parameters", "stream"}`, for every task.

Responses have the shapes of its Inference API and, for generated text, of Text Generation
Inference; `huggingface_hub.InferenceClient` reads them, given this server's address as its model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field, TypeAdapter, ValidationError

from stillhouse.inference.engine.batcher import Ended, NewToken, ScoredToken
from stillhouse.inference.generation import Generation
from stillhouse.serving.dialects.base import (
    STREAMED,
    ClientDep,
    Dialect,
    GenerationResponse,
    ModelsDep,
)
from stillhouse.serving.schemas import (
    MAX_PROMPTS,
    MAX_TOP_LOGPROBS,
    APIError,
    Neutral,
    RequestModel,
    Seed,
    Stops,
    anything,
    from_validation,
    only,
)
from stillhouse.serving.served_model import (
    GeneratedSequence,
    RequestOutput,
    ServedModel,
    StreamEvent,
)
from stillhouse.tasks.text_classification import TextClassification

router = APIRouter(tags=["Hugging Face"])
DIALECT = Dialect(router)

DEFAULT_NEW_TOKENS = 100
FINISH_REASONS = {"length": "length", "time": "length", "stop": "stop_sequence"}

Text = Annotated[str, Field(min_length=1)]


class FeatureParameters(RequestModel):
    """Parameters of feature extraction. Embeddings have length one and texts are truncated to the
    context, as in training."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "dimensions": only(),
        "encoding_format": only("float"),
        "normalize": only(True),
        "prompt_name": only(),
        "truncate": only(True),
        "truncation_direction": only("right", "Right"),
    }


class Options(RequestModel):
    """Options of the Inference API, none of which has an effect here."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "use_cache": anything,
        "wait_for_model": anything,
        "use_gpu": anything,
    }


class HubRequest(FeatureParameters):
    """`POST /` and `POST /models/{id}`; the task decides what `inputs` and `parameters` hold.
    InferenceClient sends the parameters of feature extraction beside the inputs."""

    inputs: str | list[Any] | dict[str, Any]
    parameters: dict[str, Any] = Field(default={})
    options: Options = Options()
    stream: bool = False


class TextParameters(RequestModel):
    """Parameters of text generation. As in Text Generation Inference, `do_sample` or a sampling
    parameter that has an effect selects sampling; otherwise decoding is greedy."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "adapter_id": only(),
        "best_of": only(1),
        "frequency_penalty": only(0),
        "grammar": only(),
        "num_return_sequences": only(1),
        "watermark": only(False),
    }

    max_new_tokens: int = Field(DEFAULT_NEW_TOKENS, ge=1)
    do_sample: bool = False
    temperature: float | None = Field(None, gt=0, le=100)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    seed: Seed | None = None
    stop: Stops = Field(default=[])
    return_full_text: bool = False
    truncate: int | None = Field(None, ge=1)
    details: bool = False
    decoder_input_details: bool = False
    top_n_tokens: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)

    def generation(self) -> Generation:
        given = (self.temperature, self.top_k, self.top_p, self.typical_p)
        neutral = (1, 0, 1, 1)
        is_sampled = any(
            value not in (None, none) for value, none in zip(given, neutral, strict=True)
        )
        return Generation(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature or 1.0,
            top_k=self.top_k or 0,
            top_p=self.top_p or 1.0,
            typical_p=self.typical_p or 1.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            greedy=not (self.do_sample or is_sampled),
            stop=tuple(self.stop),
            seed=self.seed,
        )


class FillMaskParameters(RequestModel):
    neutral: ClassVar[Mapping[str, Neutral]] = {"targets": only([])}

    top_k: int = Field(5, ge=1, le=100)


class ClassificationParameters(RequestModel):
    top_k: int | None = Field(None, ge=1)
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class AnswerParameters(RequestModel):
    neutral: ClassVar[Mapping[str, Neutral]] = {
        "align_to_words": only(True),
        "doc_stride": only(),
        "max_answer_len": only(),
        "max_question_len": only(),
        "max_seq_len": only(),
        "top_k": only(1),
    }

    handle_impossible_answer: bool = False


class TaggingParameters(RequestModel):
    """Words are tagged at their first token, and entities are grouped."""

    neutral: ClassVar[Mapping[str, Neutral]] = {
        "aggregation_strategy": only("simple", "first"),
        "ignore_labels": only(["O"]),
        "stride": only(0),
    }


class Question(RequestModel):
    question: str = Field(min_length=1)
    context: str = Field(min_length=1)


class SimilarityInputs(RequestModel):
    source_sentence: str
    sentences: Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]


@router.post("/", responses=STREAMED)
async def infer(body: HubRequest, models: ModelsDep, client: ClientDep) -> Response:
    """Run the first model's task."""
    return await infer_by_path("", body, models, client)


@router.post("/models/{model_id:path}", responses=STREAMED)
async def infer_by_path(
    model_id: str, body: HubRequest, models: ModelsDep, client: ClientDep
) -> Response:
    """Run the task of the model in the path. A list of inputs has a list of results."""
    model = models.named(model_id)
    task = model.loaded.pipeline_task
    is_list = isinstance(body.inputs, list)
    if body.stream and (is_list or task != "text-generation"):
        raise APIError(400, "Only one generated text can be streamed.", param="stream")
    inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    _validated(Annotated[list[Any], Field(min_length=1, max_length=MAX_PROMPTS)], inputs, "inputs")
    if task == "text-generation":
        response = _text_response(model, inputs, body)
        return await client.respond(response, DIALECT, stream=body.stream)
    if task == "feature-extraction" and isinstance(body.inputs, dict):
        task = "sentence-similarity"
    elif task == "feature-extraction":
        inputs = [inputs]  # embedded together
    work = _run_task(task, model, inputs, body.parameters)
    results = await client.cancel_on_disconnect(work)
    # As in the Inference API, one text has a list of one embedding, or of one list of labels.
    is_single = not is_list and task != "text-classification"
    return JSONResponse(results[0] if is_single or task == "feature-extraction" else results)


def _validated(kind: Any, given: Any, name: str) -> Any:
    """Inputs or parameters of the type that a task expects.

    Raises:
        APIError: 400, with the field that differs.
    """
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise from_validation(error.errors(), name) from error


def _text_response(
    model: ServedModel, inputs: Sequence[Any], body: HubRequest
) -> "_TextGenerationResponse":
    lm = model.causal_lm
    prompts = [_validated(str, each, "inputs") for each in inputs]
    parameters: TextParameters = _validated(TextParameters, body.parameters, "parameters")
    cut = slice(None) if parameters.truncate is None else slice(-parameters.truncate, None)
    outputs = model.prepare(
        [lm.prompt_ids(prompt)[cut] for prompt in prompts],
        parameters.generation(),
        num_top_logprobs=parameters.top_n_tokens if parameters.details or body.stream else None,
        echo=parameters.decoder_input_details,
    )
    return _TextGenerationResponse(
        model, outputs, prompts, parameters, isinstance(body.inputs, list)
    )


@dataclass
class _TextGenerationResponse(GenerationResponse):
    """The response of Text Generation Inference."""

    prompts: Sequence[str]
    parameters: TextParameters
    is_list: bool
    _held: dict[str, Any] | None = None  # the chunk of the last token

    def whole(self) -> Any:
        results = [[self._result(output)] for output in self.outputs]
        return results if self.is_list else results[0]

    def _result(self, output: RequestOutput) -> dict[str, Any]:
        (sequence,) = output.sequences
        result: dict[str, Any] = {"generated_text": self._full_text(sequence)}
        if self.parameters.details:
            result["details"] = self._details(output) | {
                "prefill": [self._token(token) for token in output.prompt],
                "tokens": [self._token(token) for token in sequence.tokens],
            }
            if self.parameters.top_n_tokens:
                top_tokens = [self._top_tokens(token) for token in sequence.tokens]
                result["details"]["top_tokens"] = top_tokens
        return result

    def chunks(self, output: RequestOutput, event: StreamEvent) -> Iterator[dict[str, Any]]:
        """One per token. The last one has the whole text, so each is held back until the next is
        known."""
        (sequence,) = output.sequences
        if self._held is not None:
            if isinstance(event, Ended):
                self._held["token"]["text"] += event.text
                self._held["generated_text"] = self._full_text(sequence)
                self._held["details"] = self._details(output)
            yield self._held
        if isinstance(event, NewToken):
            self._held = {
                "index": len(sequence.tokens),
                "token": self._token(event.token) | {"text": event.text},
                "generated_text": None,
                "details": None,
            }
            if self.parameters.top_n_tokens:
                self._held["top_tokens"] = self._top_tokens(event.token)

    def _full_text(self, sequence: GeneratedSequence) -> str:
        prefix = self.prompts[sequence.index] if self.parameters.return_full_text else ""
        return prefix + sequence.text

    def _details(self, output: RequestOutput) -> dict[str, Any]:
        request, (sequence,) = output.request, output.sequences
        assert sequence.reason is not None
        is_eos = sequence.tokens and sequence.tokens[-1].id in self.model.loaded.end_ids
        return {
            "finish_reason": "eos_token" if is_eos else FINISH_REASONS[sequence.reason],
            "generated_tokens": len(sequence.tokens),
            "input_length": len(request.prompt_ids),
            "seed": None if request.settings.greedy else request.seed,
        }

    def _token(self, token: ScoredToken) -> dict[str, Any]:
        return {
            "id": token.id,
            "text": self.model.loaded.token_text(token.id),
            "logprob": token.log_probability,
            "special": token.id in self.model.loaded.tokenizer.all_special_ids,
        }

    def _top_tokens(self, token: ScoredToken) -> list[dict[str, Any]]:
        return [self._token(ScoredToken(*pair)) for pair in token.top_logprobs]


async def _run_task(
    task: str, model: ServedModel, inputs: Sequence[Any], parameters: Mapping[str, Any]
) -> list[Any]:
    """The result of each input; steps of generation run in between."""
    kind, parameters_kind, work = TASKS[task]
    results = []
    for each in inputs:
        given = _validated(kind, each, "inputs")
        known = _validated(parameters_kind, parameters, "parameters")
        results.append(await model.run(work, model, given, known))
    return results


def _fill_mask(
    model: ServedModel, text: str, parameters: FillMaskParameters
) -> list[dict[str, Any]]:
    mask = str(model.loaded.tokenizer.mask_token)
    return [
        {
            "score": each.probability,
            "token": each.id,
            "token_str": each.text,
            "sequence": text.replace(mask, each.text),
        }
        for each in model.loaded.fill_mask(text, top_k=parameters.top_k)
    ]


def _classify(
    model: ServedModel, text: str, parameters: ClassificationParameters
) -> list[dict[str, Any]]:
    task, function = model.loaded.task, "none"
    if isinstance(task, TextClassification):
        function = "sigmoid" if task.recipe.multi_label else "softmax"
    if parameters.function_to_apply not in (None, function):
        raise APIError(
            400,
            f"parameters.function_to_apply is {parameters.function_to_apply!r}, but {model.name} "
            f"was trained with {function!r}; omit it.",
            param="parameters.function_to_apply",
        )
    return model.loaded.label_scores(text)[: parameters.top_k]


def _answer(model: ServedModel, given: Question, parameters: AnswerParameters) -> dict[str, Any]:
    return model.loaded.answer(
        given.question,
        given.context,
        handle_impossible_answer=parameters.handle_impossible_answer,
    )


def _compare(model: ServedModel, given: SimilarityInputs, _: RequestModel) -> list[float]:
    """The cosine similarity of one sentence to each of the others."""
    embeddings = model.loaded.embed([given.source_sentence, *given.sentences])
    return (embeddings[1:] @ embeddings[0]).tolist()


# By pipeline task: the type of one input, the parameters, and what runs in the model's thread.
TASKS: dict[str, tuple[Any, type[RequestModel], Callable[[ServedModel, Any, Any], Any]]] = {
    "fill-mask": (Text, FillMaskParameters, _fill_mask),
    "text-classification": (Text, ClassificationParameters, _classify),
    "token-classification": (
        Text,
        TaggingParameters,
        lambda model, text, _: model.loaded.tag(text),
    ),
    "question-answering": (Question, AnswerParameters, _answer),
    "feature-extraction": (
        list[str],
        FeatureParameters,
        lambda model, texts, _: model.loaded.embed(texts).tolist(),
    ),
    "sentence-similarity": (SimilarityInputs, RequestModel, _compare),
}

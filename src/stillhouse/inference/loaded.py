"""A model folder, loaded with its tokenizer, put to work: it continues text, fills masks, gives
features; with the head of a task it classifies, answers, tags or embeds.

What it says of a text has the shape of transformers' pipelines.

Axes: T tokens of the text, D hidden size, N texts.
"""

import functools
import warnings
from collections.abc import Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.text import check_whole_characters
from stillhouse.errors import DataError, ModelError, RecipeError
from stillhouse.families.registry import family_of
from stillhouse.inference.arguments import (
    checked_arguments,
    examples_of,
    generation_of,
    questions_of,
    texts_of,
)
from stillhouse.inference.engine.batcher import (
    Batcher,
    Ended,
    Event,
    Failed,
    NewToken,
    Request,
    must_be_known,
)
from stillhouse.inference.engine.kv_cache import SlottedModel
from stillhouse.inference.engine.text_stream import REPLACEMENT_CHARACTER, TextStream
from stillhouse.inference.generation import Generation
from stillhouse.models.folder import load_model, resolve_folder
from stillhouse.models.folder_check import load_config, load_model_tokenizer
from stillhouse.models.special_ids import (
    end_token_ids,
    warn_of_unheeded_settings,
    without_generation_defaults,
)
from stillhouse.models.task_models import head_of, load_task_model
from stillhouse.tasks.asking import predict
from stillhouse.tasks.embeddings import Embeddings
from stillhouse.tasks.question_answering import QuestionAnswering
from stillhouse.tasks.registry import task_of_model
from stillhouse.tasks.settings import TaskRecipe
from stillhouse.tasks.squad import Question
from stillhouse.tasks.task import Task, text_length
from stillhouse.tasks.text_classification import TextClassification, TextRegression
from stillhouse.tasks.texts import TextExample
from stillhouse.tasks.token_classification import TokenClassification, words_in
from stillhouse.tokens.tokenizer import find_special_tokens, num_ids, unused_ids
from stillhouse.wording import counted

PROMPTS_AT_ONCE = 8  # of a list of prompts; their keys and values are in memory together


class Filled(NamedTuple):
    """A token for a gap."""

    text: str
    probability: float
    id: int


class LoadedModel:
    """A model ready for use, in float32."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        task: Task | None = None,
    ) -> None:
        """A language model has no `task`."""
        self.family = family_of(model.config)
        self.model = model
        self.num_parameters = model.num_parameters()  # in less precision some are none of PyTorch's
        self.tokenizer = tokenizer
        self._task = task
        self._token_texts: dict[int, str] = {}

    @property
    def task(self) -> Task:
        """What the model was made for.

        Raises:
            ModelError: it is a language model.
        """
        if self._task is None:
            raise ModelError("This model was made for language modeling; it does not do this.")
        return self._task

    @property
    def is_causal(self) -> bool:
        """Whether it continues text."""
        return self._task is None and self.family.language_modeling == "causal"

    @property
    def models_language(self) -> bool:
        """Whether it has no task of its own: it continues text, or fills gaps."""
        return self._task is None

    @property
    def pipeline_task(self) -> str:
        """What it does, in the words of transformers' pipelines."""
        if self._task is None:
            return "text-generation" if self.is_causal else "fill-mask"
        match self._task:
            case TextClassification() | TextRegression():
                return "text-classification"
            case TokenClassification():
                return "token-classification"
            case QuestionAnswering():
                return "question-answering"
            case _:
                return "feature-extraction"

    @property
    def context(self) -> int:
        """The longest sequence the model takes, in tokens."""
        return self.family.num_positions(self.model.config)

    def generate(self, prompt: Any, **settings: Any) -> Any:
        """Texts that begin with the prompt: a list of `num_return_sequences`; for a list of
        prompts, such a list for each. See `Generation` for the settings, such as
        `max_new_tokens=50`, `top_p=0.9`, `greedy=True`, `stop="\\n"` or `seed=1`.

        Raises:
            RecipeError: a setting that is not known, with the name that is meant, or cannot be.
            ModelError: a masked model, which fills gaps and does not continue text.
            DataError: the prompt and the new tokens do not fit the model's context.
        """
        prompts, single = texts_of(prompt, "prompt")
        known = generation_of(settings)
        found = [
            [each + text for text in texts]
            for each, texts in zip(prompts, self._continue_all(prompts, known), strict=True)
        ]
        return found[0] if single else found

    def continuations(self, prompt: str, settings: Generation) -> list[str]:
        """What follows the prompt, without it. An empty prompt begins a new document."""
        (texts,) = self._continue_all([prompt], settings)
        return texts

    def _continue_all(self, prompts: Sequence[str], settings: Generation) -> list[list[str]]:
        """The continuations of each prompt; what one gets does not depend on the others."""
        number = settings.num_return_sequences
        batcher = self.batcher(number * max(1, min(len(prompts), PROMPTS_AT_ONCE)))
        requests = [
            Request(self.prompt_ids(prompt), settings, settings.drawn_seed()) for prompt in prompts
        ]
        for request in requests:
            batcher.check(request)
        if settings.num_beams > 1:
            return [self._search_beams(request.prompt_ids, settings) for request in requests]
        found = [[""] * number for _ in prompts]
        for texts, request in zip(found, requests, strict=True):
            batcher.submit(request, functools.partial(_collect, texts))
        batcher.run()
        return found

    def batcher(self, num_slots: int) -> Batcher:
        """What generates with this model, with room for so many sequences at once.

        Raises:
            ModelError: a model that does not continue text.
        """
        return Batcher(self.slots(num_slots), self.tokenizer, self.end_ids)

    def slots(self, num_slots: int) -> SlottedModel:
        """The model with room for so many sequences at once; see `batcher`."""
        self._must_model_language()
        return SlottedModel(self.family, self.model, num_slots, self.unused_ids)

    @cached_property
    def unused_ids(self) -> tuple[int, ...]:
        """Rows of the embedding that no token has."""
        return unused_ids(self.tokenizer, self.model.config.vocab_size)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text. Where the model's files name only such as there are not, as
        transformers' default does for a small vocabulary, the tokenizer's own."""
        named, own = end_token_ids(self.model), find_special_tokens(self.tokenizer).end_of_text
        known = named.intersection(range(num_ids(self.tokenizer)))
        return known if known or not named or own is None else frozenset({own})

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """The tokens of a prompt, after the start token that the tokenizer puts before a text, if
        it puts one. An empty prompt begins a new document: with the model's start token, or else
        with one that ends a text.

        Raises:
            DataError: an empty prompt, and no token that begins or ends a text.
        """
        special, ids = find_special_tokens(self.tokenizer), self.encode(prompt)
        if special.document_start not in (special.end_of_text, None):
            return (special.document_start, *ids)
        starts = (self.model.config.bos_token_id, special.document_start, *sorted(self.end_ids))
        known = range(num_ids(self.tokenizer))
        ids = ids or [token for token in starts if token is not None and token in known][:1]
        if not ids:
            raise DataError(
                "This model has no token that begins or ends a text, so an empty prompt has "
                "nothing to start from; give a prompt."
            )
        return tuple(ids)

    @torch.inference_mode()
    def _search_beams(self, ids: Sequence[int], settings: Generation) -> list[str]:
        """Beam search as transformers does it."""
        inputs = torch.tensor([ids], device=self.model.device)
        with without_generation_defaults(self.model):
            output = self.model.generate(  # pyright: ignore[reportCallIssue]
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=settings.max_new_tokens,
                num_beams=settings.num_beams,
                num_return_sequences=settings.num_return_sequences,
                repetition_penalty=settings.repetition_penalty,
                do_sample=False,
                suppress_tokens=list(self.unused_ids) or None,
                renormalize_logits=bool(self.unused_ids),
            )
        return [self._continuation(ids, row[len(ids) :].tolist(), settings) for row in output]

    def _continuation(
        self, prompt_ids: Sequence[int], new_ids: Sequence[int], settings: Generation
    ) -> str:
        """The text of new tokens, up to a text that stops it."""
        stream = TextStream(self.tokenizer, prompt_ids, settings.stop)
        text = ""
        for token in new_ids:
            if stream.stopped or token in self.end_ids:
                break
            text += stream.push(token)
        return text + stream.finish()

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens that someone else chose.

        Raises:
            DataError: ids that no token has.
        """
        must_be_known(ids, num_ids(self.tokenizer))
        return self.decode(ids)

    @checked_arguments
    def features(self, text: Any) -> Any:
        """Last hidden states of the text's tokens, special tokens of masked models included: a
        float32 tensor (T, D); for a list of texts, a list of them.

        Raises:
            DataError: a text has no tokens, or more than the model's context.
        """
        texts, single = texts_of(text, "text")
        found = [self._features(each) for each in texts]
        return found[0] if single else found

    @torch.inference_mode()
    def _features(self, text: str) -> Float[Tensor, "T D"]:
        masked = self.family.language_modeling == "masked"
        ids = (
            self.tokenizer(text, add_special_tokens=True)["input_ids"]
            if masked
            else self.encode(text)
        )
        if not 0 < len(ids) <= self.context:
            raise DataError(f"The text has {len(ids)} tokens; the model takes 1 to {self.context}.")
        body = self.model.base_model
        found = body(input_ids=torch.tensor([ids], device=self.model.device))
        return found.last_hidden_state[0].float()

    @checked_arguments
    def fill_mask(self, text: Any, *, top_k: Any = 5) -> Any:
        """The `top_k` likeliest tokens for the one mask token in the text, with their
        probabilities: a list of `Filled`; for a list of texts, such a list for each.

        Raises:
            ModelError: a causal model.
            DataError: no mask token in a text, or more than one.
        """
        texts, single = texts_of(text, "text")
        if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
            raise RecipeError(f"top_k is {top_k!r}; it must be a whole number, 1 or more.")
        found = [self._fill_mask(each, int(top_k)) for each in texts]
        return found[0] if single else found

    @torch.inference_mode()
    def _fill_mask(self, text: str, top_k: int) -> list[Filled]:
        self._must_model_language()
        if self.family.language_modeling != "masked":
            raise ModelError(
                f"A {self.family.model_type} model continues text; it does not fill gaps."
            )
        if self.tokenizer.mask_token_id is None:
            raise DataError("The model's tokenizer has no mask token, so there is no gap to fill.")
        ids = torch.tensor(self.tokenizer(text)["input_ids"], device=self.model.device)
        if len(ids) > self.context:
            raise DataError(f"The text has {len(ids)} tokens; the model takes {self.context}.")
        mask_id = torch.tensor(self.tokenizer.mask_token_id, device=self.model.device)
        places = torch.eq(ids, mask_id).nonzero().flatten()
        if len(places) != 1:
            raise DataError(
                f"The text has {len(places)} mask tokens ({self.tokenizer.mask_token}); give "
                "exactly one."
            )
        hidden = self.model.base_model(input_ids=ids[None]).last_hidden_state[0, places]
        head = self.family.head(self.model)
        logits = torch.nn.functional.linear(head.transform(hidden), head.weight, head.bias)[0]
        gaps = [id for id in self.unused_ids if id < len(logits)]  # the padding is cut off
        unused = torch.tensor(gaps, dtype=torch.long, device=logits.device)
        known = logits.float().index_fill(0, unused, -torch.inf)
        best = known.softmax(-1).topk(min(top_k, len(known) - len(unused)))
        return [
            Filled(self.decode([token]).strip(), probability, token)
            for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    @checked_arguments
    def classify(self, text: Any, pair: Any = None) -> Any:
        """The likeliest label and its probability; all that hold where a model gives several; the
        value of a regression.

        Args:
            text: A text; a pair of texts as a tuple, or as a dictionary of `text` and `text_pair`;
                or a list of any of these, for which a list comes back.
            pair: The second text, or the list of second texts, beside `text`.

        Raises:
            RecipeError: an input of another form; so too below.
            ModelError: a model that was made for something else; so too below.
        """
        examples, single = examples_of(text, pair)
        return self._results(examples, single, TextClassification, TextRegression)

    def label_scores(self, text: str) -> list[dict[str, Any]]:
        """Every label with its probability, the likeliest first; or the one value."""
        (found,) = self.predictions([TextExample(text)], TextClassification, TextRegression)
        if isinstance(self.task, TextRegression):
            return [self.task.result(found)]
        assert isinstance(self.task, TextClassification)
        scored = zip(self.task.labels, found, strict=True)
        return [
            {"label": label, "score": float(score)}
            for label, score in sorted(scored, key=lambda pair: -pair[1])
        ]

    @checked_arguments
    def answer(
        self, question: Any, context: Any = None, *, handle_impossible_answer: bool = False
    ) -> Any:
        """The stretch of the context that answers the question.

        Args:
            question: A question; a dictionary of `question` and `context`; or a list of either,
                for which a list comes back.
            context: The context, or the list of contexts, of the questions.
            handle_impossible_answer: The answer is empty where the model finds it likelier, by
                more than its threshold, that the context does not hold one.
        """
        asked, single = questions_of(question, context)
        examples = [Question("", one, about, ()) for one, about in asked]
        predictions = self.predictions(examples, QuestionAnswering)
        assert isinstance(self.task, QuestionAnswering)
        found = [
            self.task.answer(each, handle_impossible_answer=handle_impossible_answer)
            for each in predictions
        ]
        return found[0] if single else found

    @checked_arguments
    def tag(self, text: Any) -> Any:
        """The entities in a text: a list of them; for a list of texts, such a list for each."""
        texts, single = texts_of(text, "text")
        return self._results([words_in(each) for each in texts], single, TokenClassification)

    @checked_arguments
    def embed(self, texts: Any) -> Float[np.ndarray, "*N D"]:
        """The vector of a text (D,); for a list of N texts, an array (N, D). Vectors have length 1
        unless the model's own files say otherwise."""
        given, single = texts_of(texts, "texts")
        found = self.predictions([TextExample(text) for text in given], Embeddings)
        vectors = np.concatenate([np.zeros((0, self.model.config.hidden_size), np.float32), *found])
        return vectors[0] if single else vectors

    def predictions(self, examples: Sequence[Any], *kinds: type) -> list[Any]:
        """The predictions of the model's task, of one of these kinds, for its examples in order."""
        if kinds and not isinstance(self.task, kinds):
            raise ModelError(
                f"This model was made for {self.task.recipe.kind}; it does not do this."
            )
        found, num_cut = self.predictions_and_cuts(examples)
        if num_cut:
            warnings.warn(cut_text(num_cut, self.task), stacklevel=4)
        return found

    def predictions_and_cuts(self, examples: Sequence[Any]) -> tuple[list[Any], int]:
        """The predictions, and of how many texts the end was not read."""
        encoded = self.task.encode(examples, self.tokenizer)
        num_cut = sum(sequence.is_cut for own in encoded for sequence in own)
        return predict(self.task, self.model, examples, encoded), num_cut

    def _results(self, examples: Sequence[Any], single: bool, *kinds: type) -> Any:
        found = [self.task.result(each) for each in self.predictions(examples, *kinds)]
        return found[0] if single else found

    def _must_model_language(self) -> None:
        if self._task is not None:
            raise ModelError(
                f"This model was made for {self._task.recipe.kind}; it does not model language."
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it.

        Raises:
            DataError: half a surrogate pair, as where bytes that are no UTF-8 were given.
        """
        check_whole_characters(text, "The text")
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def token_text(self, token: int) -> str:
        """What stands for one token: its text, or, where that is no whole character, its name in
        the vocabulary."""
        if token not in self._token_texts:
            text = self.tokenizer.decode([token])
            name = self.tokenizer.convert_ids_to_tokens(token)
            assert isinstance(text, str)
            assert isinstance(name, str)
            self._token_texts[token] = name if REPLACEMENT_CHARACTER in text else text
        return self._token_texts[token]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text


def _collect(texts: list[str], event: Event) -> None:
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, NewToken | Ended):
        texts[event.sequence] += event.text


def load(name: str | Path, *, offline: bool = False) -> LoadedModel:
    """Load a model folder, the packaged `sample` teacher, or a hub name, for what it was made for.

    Raises:
        ModelError: no such folder, or one that is not a complete model.
        NetworkError: a hub name that is not on this disk, without a network.
    """
    folder = resolve_folder(str(name), offline=offline)
    if head_of(load_config(folder)) is not None:
        return load_for_task(folder)
    tokenizer = load_model_tokenizer(folder)
    _, model = load_model(folder, tokenizer)
    warn_of_unheeded_settings(folder)
    return LoadedModel(model, tokenizer)


def load_for_task(
    folder: Path, recipe: TaskRecipe | None = None, device: torch.device | None = None
) -> LoadedModel:
    """The model of a folder for the task it was trained on.

    Args:
        recipe: How the task's data is read.
        device: The processor, unless another is given.

    Raises:
        ModelError: a model without the head of a task, or one that is not complete.
        RecipeError: another task than the model's.
    """
    task, tokenizer = task_of_model(folder, recipe), load_model_tokenizer(folder)
    model = load_task_model(folder, task.head, {}, tokenizer)
    model.to(device or torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    return LoadedModel(model, tokenizer, task)


def cut_text(number: int, task: Task) -> str:
    """What to say where texts are longer than a task reads."""
    are = counted(number, "text has", "texts have")
    return f"{are} more than {text_length(task.recipe)} tokens; the rest was not read."

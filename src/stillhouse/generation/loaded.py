"""A model folder, loaded with its tokenizer, put to work: it continues text, fills masks, gives
features; with the head of a task it classifies, answers, tags or embeds.

What it says of a text has the shape of transformers' pipelines.

Axes: T tokens of the text, D hidden size, N texts.
"""

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.errors import DataError, ModelError
from stillhouse.families import (
    end_token_ids,
    family_of,
    head_of,
    load_config,
    load_model,
    load_task_model,
    resolve_folder,
    without_generation_defaults,
)
from stillhouse.generation.batching import (
    Batcher,
    Ended,
    Event,
    Failed,
    NewToken,
    Request,
    must_be_known,
)
from stillhouse.generation.settings import Generation
from stillhouse.generation.slots import SlottedModel
from stillhouse.generation.text_stream import HALF, TextStream
from stillhouse.recipe_tasks import TaskRecipe
from stillhouse.tasks.asking import ask
from stillhouse.tasks.embeddings import Embeddings
from stillhouse.tasks.question_answering import QuestionAnswering
from stillhouse.tasks.registry import task_of_model
from stillhouse.tasks.squad import Question
from stillhouse.tasks.task import Task
from stillhouse.tasks.text_classification import TextClassification, TextRegression
from stillhouse.tasks.texts import TextExample
from stillhouse.tasks.token_classification import TokenClassification, words_in
from stillhouse.tokens.tokenizer import load_tokenizer, unused_ids
from stillhouse.wording import counted


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

    def generate(self, prompt: str, **settings: Any) -> list[str]:
        """Texts that begin with `prompt`; see `Generation` for the settings, such as
        `max_new_tokens=50`, `top_p=0.9`, `greedy=True` or `seed=1`.

        Raises:
            ModelError: a masked model, which fills gaps and does not continue text.
            DataError: the prompt and the new tokens do not fit the model's context.
        """
        return [prompt + text for text in self.continuations(prompt, Generation(**settings))]

    def continuations(self, prompt: str, settings: Generation) -> list[str]:
        """What follows the prompt, without it. An empty prompt begins a new document."""
        batcher = self.batcher(settings.num_return_sequences)
        ids = self.prompt_ids(prompt)
        if settings.num_beams > 1:
            batcher.check(Request(ids, settings, 0))
            return self._search_beams(ids, settings)
        texts = [""] * settings.num_return_sequences

        def collect(event: Event) -> None:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, NewToken | Ended):
                texts[event.sequence] += event.text

        batcher.submit(Request(ids, settings, settings.drawn_seed()), collect)
        batcher.run()
        return texts

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
        """The tokens that end a text."""
        return end_token_ids(self.model)

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """The tokens of a prompt. An empty one begins a new document: with the token that begins
        texts, or, where there is none, one that ends them.

        Raises:
            DataError: an empty prompt, and neither.
        """
        if ids := self.encode(prompt):
            return tuple(ids)
        begin = self.model.config.bos_token_id
        if begin is not None:
            return (begin,)
        if not self.end_ids:
            raise DataError("This model has no token that begins a text; give a prompt.")
        return (min(self.end_ids),)

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
        must_be_known(ids, len(self.tokenizer))
        return self.decode(ids)

    @torch.inference_mode()
    def features(self, text: str) -> Float[Tensor, "T D"]:
        """Last hidden states of the text's tokens, special tokens of masked models included.

        Raises:
            DataError: the text has no tokens, or more than the model's context.
        """
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

    @torch.inference_mode()
    def fill_mask(self, text: str, *, top_k: int = 5) -> list[Filled]:
        """The likeliest tokens for the one mask token in `text`, with their probabilities.

        Raises:
            ModelError: a causal model.
            DataError: no mask token in the text, or more than one.
        """
        self._must_model_language()
        if self.family.language_modeling != "masked":
            raise ModelError(
                f"A {self.family.model_type} model continues text; it does not fill gaps."
            )
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
        unused = torch.tensor(self.unused_ids, dtype=torch.long, device=logits.device)
        known = logits.float().index_fill(0, unused, -torch.inf)
        best = known.softmax(-1).topk(min(top_k, len(known) - len(unused)))
        return [
            Filled(self.decode([token]).strip(), probability, token)
            for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def classify(self, text: str, pair: str | None = None) -> Any:
        """The likeliest label and its probability; all that hold where a model gives several; the
        value of a regression.

        Raises:
            ModelError: a model that was made for something else; so too below.
        """
        return self._result(TextExample(text, pair), TextClassification, TextRegression)

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

    def answer(self, question: str, context: str) -> dict[str, Any]:
        """The stretch of the context that answers the question."""
        return self._result(Question("", question, context, ()), QuestionAnswering)

    def tag(self, text: str) -> list[dict[str, Any]]:
        """The entities in a text."""
        return self._result(words_in(text), TokenClassification)

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """A vector of length 1 for each text."""
        found = self.predictions([TextExample(text) for text in texts], Embeddings)
        return np.concatenate([np.zeros((0, self.model.config.hidden_size), np.float32), *found])

    def predictions(self, examples: Sequence[Any], *kinds: type) -> list[Any]:
        """The predictions of the model's task, of one of these kinds, for its examples in order."""
        if kinds and not isinstance(self.task, kinds):
            raise ModelError(
                f"This model was made for {self.task.recipe.kind}; it does not do this."
            )
        found, num_cut = self.predictions_and_cuts(examples)
        if num_cut:
            warnings.warn(cut_text(num_cut, self.task), stacklevel=3)
        return found

    def predictions_and_cuts(self, examples: Sequence[Any]) -> tuple[list[Any], int]:
        """The predictions, and of how many texts the end was not read."""
        encoded = self.task.encode(examples, self.tokenizer)
        num_cut = sum(sequence.is_cut for own in encoded for sequence in own)
        return ask(self.task, self.model, examples, encoded), num_cut

    def _result(self, example: Any, *kinds: type) -> Any:
        return self.task.result(self.predictions([example], *kinds)[0])

    def _must_model_language(self) -> None:
        if self._task is not None:
            raise ModelError(
                f"This model was made for {self._task.recipe.kind}; it does not model language."
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def token_text(self, token: int) -> str:
        """What stands for one token: its text, or, where that is no whole character, its name in
        the vocabulary."""
        if token not in self._token_texts:
            text = self.tokenizer.decode([token])
            name = self.tokenizer.convert_ids_to_tokens(token)
            assert isinstance(text, str)
            assert isinstance(name, str)
            self._token_texts[token] = name if HALF in text else text
        return self._token_texts[token]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text


def load(name: str | Path, *, offline: bool = False) -> LoadedModel:
    """Load a model folder, the packaged `sample` teacher, or a hub name, for what it was made for.

    Raises:
        ModelError: no such folder, or one that is not a complete model.
        NetworkError: a hub name that is not on this disk, without a network.
    """
    folder = resolve_folder(str(name), offline=offline)
    if head_of(load_config(folder)) is not None:
        return load_for_task(folder)
    _, model = load_model(folder)
    return LoadedModel(model, load_tokenizer(folder))


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
    task = task_of_model(folder, recipe)
    model = load_task_model(folder, task.head, {})
    model.to(device or torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    return LoadedModel(model, load_tokenizer(folder), task)


def cut_text(number: int, task: Task) -> str:
    """What to say where texts are longer than a task reads."""
    are = counted(number, "text has", "texts have")
    return f"{are} more than {task.recipe.length} tokens; the rest was not read."

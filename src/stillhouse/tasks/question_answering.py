"""Extractive question answering: the start and end of the answer in a context.

A long context is covered by windows that overlap. Each token of the context counts in the window
with the most context around it, the best starts are paired with the best ends, and answers have a
limited length (Devlin et al. 2019, arXiv:1810.04805, section 4.2 and the procedure published with
it).

A window without the answer has its first token as both targets, so that the logits of different
windows can be compared. The sum of that token's two logits is the null score of a window; the null
score of a question is the lowest of its windows'.

Axes: B windows, T tokens of a window.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row, read_rows
from stillhouse.data.text import check_whole_characters
from stillhouse.errors import RecipeError
from stillhouse.tasks.encoded import (
    EncodedExample,
    TaskBatch,
    forward,
    ids_and_types,
    separate_pairs,
)
from stillhouse.tasks.metrics import MetricSamples
from stillhouse.tasks.settings import QuestionAnsweringTask
from stillhouse.tasks.squad import (
    Answer,
    BestAnswers,
    Question,
    best_null_threshold,
    read_articles,
    read_squad,
    samples_of_answers,
    samples_with_no_answers,
)
from stillhouse.tasks.task import Task


@dataclass(frozen=True)
class Window:
    """Where the tokens of a question and a span of its context are in that context.

    Attributes:
        characters: The start and end of each token in the context.
        in_context: Which tokens belong to the context.
        has_max_context: The tokens with more context here than in any other window.
    """

    characters: Int[np.ndarray, "T 2"]
    in_context: Bool[np.ndarray, " T"]
    has_max_context: Bool[np.ndarray, " T"]

    def place_of(self, answer: Answer) -> tuple[int, int] | None:
        """The first and last token of an answer; None unless it is whole in this window."""
        text = answer.text.strip()
        first = answer.start + answer.text.index(text)
        starts = self._tokens_at(first)
        ends = self._tokens_at(first + len(text) - 1)
        return (int(starts[0]), int(ends[-1])) if len(starts) and len(ends) else None

    def _tokens_at(self, character: int) -> Int[np.ndarray, " K"]:
        begin, end = self.characters.T
        return np.flatnonzero(self.in_context & (begin <= character) & (character < end))


@dataclass(frozen=True)
class AnswerSpan:
    """A span of the context as an answer; the score is the sum of its two logits."""

    text: str
    start: int
    score: float


def encode_question(
    question: Question, tokenizer: PreTrainedTokenizerFast, recipe: QuestionAnsweringTask
) -> list[EncodedExample]:
    """Sequences whose windows (`source`) cover the context; a question that is too long is
    truncated, which counts in its first sequence.

    The target is the first of the answers, or the first token where the window has none.

    Raises:
        RecipeError: the question leaves no room for the context.
    """
    separate_pairs(tokenizer)
    for part in (question.question, question.context):
        check_whole_characters(part, "The question or its context")
    text = _truncated(question.question, tokenizer, recipe.max_question_length)
    num_tokens = len(
        tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    )
    room = recipe.max_length - num_tokens - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 1:
        raise RecipeError(
            f"The task's max_length of {recipe.max_length} tokens has no room for context beside a "
            f"question of {num_tokens} tokens ({question.question!r:.60}). Raise max_length, or "
            "lower max_question_length."
        )
    step = min(recipe.doc_stride, room)  # a longer one would skip tokens
    encodings = tokenizer(
        text,
        question.context,
        max_length=recipe.max_length,
        truncation="only_second",
        stride=room - step,
        return_overflowing_tokens=True,
        return_token_type_ids=True,
        split_special_tokens=True,
    ).encodings
    assert encodings is not None
    contexts = [np.array([part == 1 for part in each.sequence_ids]) for each in encodings]
    owned = _with_max_context([int(context.sum()) for context in contexts], step)
    found: list[EncodedExample] = []
    for encoding, in_context, own in zip(encodings, contexts, owned, strict=True):
        has_max_context, output_mask = np.zeros_like(in_context), in_context.copy()
        has_max_context[in_context], output_mask[0] = own, True
        window = Window(np.array(encoding.offsets), in_context, has_max_context)
        place = window.place_of(question.answers[0]) if question.answers else None
        found.append(
            EncodedExample(
                *ids_and_types(encoding, tokenizer),
                np.array(place or FIRST, np.int64),
                output_mask,
                is_truncated=not found and text != question.question,
                source=window,
                is_labeled=question.is_labeled,
            )
        )
    return found


def best_answers(
    context: str,
    windows: Sequence[Window],
    starts: Sequence[Float[np.ndarray, " _"]],
    ends: Sequence[Float[np.ndarray, " _"]],
    recipe: QuestionAnsweringTask,
) -> list[AnswerSpan]:
    """The answers to one question, best first, each text once; none where no window has one.

    Args:
        starts: For each window the logit of each token as the start.
        ends: The same for the end.
    """
    found: dict[str, AnswerSpan] = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        for first in _highest(np.where(window.has_max_context, start, -np.inf), recipe.n_best):
            for last in _highest(np.where(window.in_context, end, -np.inf), recipe.n_best):
                if first <= last < first + recipe.max_answer_length:
                    begin, stop = int(window.characters[first, 0]), int(window.characters[last, 1])
                    each = AnswerSpan(context[begin:stop], begin, float(start[first] + end[last]))
                    if each.text not in found or found[each.text].score < each.score:
                        found[each.text] = each
    best = sorted(found.values(), key=lambda each: (-each.score, each.start, each.text))
    return best[: recipe.n_best]


def _truncated(text: str, tokenizer: PreTrainedTokenizerFast, length: int) -> str:
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    ends = [end for _, end in encoding["offset_mapping"]]
    return text if len(ends) <= length else text[: ends[length - 1]]


def _with_max_context(sizes: Sequence[int], step: int) -> list[Bool[np.ndarray, " _"]]:
    """For each window, which tokens of its context have more context here than in other windows.

    Context is the smaller number of tokens on either side plus a hundredth of the window's size;
    ties go to the first window.
    """
    total = (len(sizes) - 1) * step + sizes[-1]
    best, owner = np.full(total, -1.0), np.zeros(total, dtype=np.int64)
    for number, size in enumerate(sizes):
        places = np.arange(size)
        context = np.minimum(places, size - 1 - places) + 0.01 * size
        span = slice(number * step, number * step + size)
        more = context > best[span]
        best[span] = np.where(more, context, best[span])
        owner[span] = np.where(more, number, owner[span])
    return [
        owner[number * step : number * step + size] == number for number, size in enumerate(sizes)
    ]


def _highest(values: Float[np.ndarray, " T"], number: int) -> Iterator[int]:
    """The indices of the highest finite values, highest first."""
    for place in np.argsort(-values, kind="stable")[:number]:
        if np.isfinite(values[place]):
            yield int(place)


FAR_BELOW = -1e9  # a logit whose probability is 0 at any temperature, and finite
DEFAULT_THRESHOLD = 0.0  # where questions may have no answer and the model has no threshold
FIRST = (0, 0)  # the target of a window without the answer


class QuestionAnswering(Task[QuestionAnsweringTask]):
    """The span of a context that answers a question."""

    head = "QuestionAnswering"
    model_settings: Mapping[str, Any] = {"num_labels": 2}
    advice = "Give questions with answers."

    def for_config(self, config: PretrainedConfig) -> "QuestionAnswering":
        """With the model's threshold, where the recipe has none."""
        threshold = getattr(config, "null_score_diff_threshold", None)
        if threshold is None or self.recipe.null_score_diff_threshold is not None:
            return self
        update = {"null_score_diff_threshold": float(threshold)}
        return QuestionAnswering(self.recipe.model_copy(update=update))

    @property
    def text_length(self) -> int:
        """That of the question; the context is never truncated."""
        return self.recipe.max_question_length

    def is_labeled(self, path: Path) -> bool:
        return read_articles(path) is not None or "answers" in read_rows(path, "context")[0].fields

    def blank_rows(self, path: Path) -> list[int]:
        return super().blank_rows(path) if read_articles(path) is None else []

    def label_set(self, example: Question) -> set[bool] | None:
        """Whether there are answers; no answer is always a possible label."""
        return {bool(example.answers), False} if example.is_labeled else None

    def describe_label(self, label: Any) -> str:
        return "are questions without an answer"

    def read(self, path: Path, *, labeled: bool = True) -> list[Question]:
        """Questions in SQuAD's format; without labels, also a table of `question` and
        `context`."""
        if labeled or read_articles(path) is not None:
            return read_squad(path)
        return [
            Question(_id_of(row, number), row.text("question"), row.text("context"), ())
            for number, row in enumerate(read_rows(path, "context", keep_blank=True))
        ]

    def encode(
        self, examples: Sequence[Question], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        return [encode_question(question, tokenizer, self.recipe) for question in examples]

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B 2 T"]:
        """The logits of each token as start and as end; FAR_BELOW where no answer can be."""
        found = forward(model, batch)
        assert batch.output_mask is not None
        logits = torch.stack([found.start_logits, found.end_logits], dim=1)
        return logits.masked_fill(~batch.output_mask[:, None], FAR_BELOW)

    def predict(
        self, example: Question, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> list[AnswerSpan]:
        """The best answers, best first, followed by the empty answer with the null score."""
        windows = [each.source for each in sequences]
        starts, ends = (
            [
                output[place, : len(window.in_context)].numpy()
                for window, output in zip(windows, outputs, strict=True)
            ]
            for place in (0, 1)
        )
        null = min(float(start[0] + end[0]) for start, end in zip(starts, ends, strict=True))
        answers = best_answers(example.context, windows, starts, ends, self.recipe)
        return [*answers, AnswerSpan("", 0, null)]

    def metric_samples(
        self, predictions: Sequence[list[AnswerSpan]], examples: Sequence[Question]
    ) -> dict[str, MetricSamples]:
        """Those of SQuAD 1.1; or, where questions have no answer, of SQuAD 2.0."""
        references = [[answer.text for answer in question.answers] for question in examples]
        answered, threshold = _answered(predictions), self.recipe.null_score_diff_threshold
        if any(question.is_impossible for question in examples):
            threshold = DEFAULT_THRESHOLD if threshold is None else threshold
            return samples_with_no_answers(answered, references, threshold)
        texts = answered.texts if threshold is None else answered.at(threshold)
        ids = [question.id for question in examples]
        return samples_of_answers(
            dict(zip(ids, texts, strict=True)), dict(zip(ids, references, strict=True))
        )

    def best_threshold(
        self, predictions: Sequence[list[AnswerSpan]], examples: Sequence[Question]
    ) -> float:
        """The threshold for no answer that maximizes the task's metric on these examples."""
        references = [[answer.text for answer in question.answers] for question in examples]
        return best_null_threshold(_answered(predictions), references, self.recipe.metric)

    def result(self, prediction: list[AnswerSpan]) -> Any:
        """The best answer, empty where the null score exceeds the model's threshold; its score is
        its softmax probability among the best ones."""
        return _best(prediction, self.recipe.null_score_diff_threshold)

    def answer(self, prediction: list[AnswerSpan], *, handle_impossible_answer: bool) -> Any:
        """The same as transformers' pipeline gives it: the best span, whatever the threshold; with
        `handle_impossible_answer` empty where the null score exceeds that of the best span by more
        than the model's threshold (0 where it has none)."""
        if not handle_impossible_answer:
            return _best(prediction, None)
        threshold = self.recipe.null_score_diff_threshold
        return _best(prediction, DEFAULT_THRESHOLD if threshold is None else threshold)


def num_unseen_answers(
    examples: Sequence[Question], encoded: Sequence[Sequence[EncodedExample]]
) -> int:
    """The number of questions whose answer is whole in no window, so that they train as questions
    without an answer."""
    return sum(
        bool(question.answers) and all((each.target == FIRST).all() for each in sequences)
        for question, sequences in zip(examples, encoded, strict=True)
    )


def _answered(predictions: Sequence[list[AnswerSpan]]) -> BestAnswers:
    texts = [found[0].text for found in predictions]
    # Where no window has an answer, only the empty answer is left.
    differences = [
        found[-1].score - (found[0].score if len(found) > 1 else FAR_BELOW) for found in predictions
    ]
    return BestAnswers(texts, np.array(differences))


def _best(prediction: list[AnswerSpan], threshold: float | None) -> dict[str, Any]:
    """The best answer; with a threshold, the empty answer is a candidate too."""
    *answers, null = prediction
    if not answers and threshold is None:
        return {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    candidates = answers if threshold is None else prediction
    best = candidates[0]
    if threshold is not None and not _answered([prediction]).at(threshold)[0]:
        best = null
    scores = np.array([each.score for each in candidates])
    return {
        "score": float(1 / np.exp(scores - best.score).sum()),
        "start": best.start,
        "end": best.start + len(best.text),
        "answer": best.text,
    }


def _id_of(row: Row, number: int) -> str:
    """A row's own id, else its number, from 0."""
    return str(number if row.fields.get("id") is None else row.fields["id"])

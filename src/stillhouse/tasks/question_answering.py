"""Extractive question answering: the start and end of the answer in a context.

A window without the answer has its first token as both targets (Devlin et al. 2019, section 4.2),
so that the logits of different windows can be compared. The sum of that token's two logits is the
null score of a window; the null score of a question is the lowest of its windows'.

Axes: B windows, T tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row, read_rows
from stillhouse.tasks.encoded import EncodedExample, TaskBatch, forward
from stillhouse.tasks.metrics import PERCENT, MetricSamples, mean_percent
from stillhouse.tasks.settings import QuestionAnsweringTask
from stillhouse.tasks.squad import Question, read_articles, read_squad
from stillhouse.tasks.squad_scores import (
    BestAnswers,
    best_null_threshold,
    samples_with_no_answers,
    score_each,
)
from stillhouse.tasks.squad_windows import AnswerSpan, Window, best_answers, windows_of
from stillhouse.tasks.task import Task

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

    def distinct_labels(self, examples: Sequence[Question]) -> set[bool] | None:
        """Whether there are answers; no answer is always a possible label."""
        if not all(question.is_labeled for question in examples):
            return None
        return {bool(question.answers) for question in examples} | {False}

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
        return [
            [_encoded(window, question) for window in windows_of(question, tokenizer, self.recipe)]
            for question in examples
        ]

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
                output[place, : len(window.input_ids)].numpy()
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
        answered = _answered(predictions)
        if any(question.is_impossible for question in examples):
            threshold = self.recipe.null_score_diff_threshold
            threshold = DEFAULT_THRESHOLD if threshold is None else threshold
            return samples_with_no_answers(answered, references, threshold)
        texts = answered.texts
        if self.recipe.null_score_diff_threshold is not None:
            texts = answered.at(self.recipe.null_score_diff_threshold)
        ids = [question.id for question in examples]
        scores = score_each(
            dict(zip(ids, texts, strict=True)), dict(zip(ids, references, strict=True))
        )
        found = {}
        for name in ("exact_match", "f1"):
            values = np.array([getattr(each, name) for each in scores.values()])
            found[name] = MetricSamples(mean_percent, values, values, bounds=PERCENT)
        return found

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
        bool(question.answers)
        and all(each.target is not None and (each.target == FIRST).all() for each in sequences)
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
    own = row.fields.get("id")
    return str(number if own is None else own)


def _encoded(window: Window, question: Question) -> EncodedExample:
    """The target is the first of the answers, or the first token where there is none."""
    answers = question.answers
    output_mask = window.in_context.copy()
    output_mask[0] = True
    place = (window.place_of(answers[0]) if answers else None) or FIRST
    return EncodedExample(
        window.input_ids,
        window.token_type_ids,
        np.array(place, np.int64),
        output_mask,
        is_truncated=window.is_truncated,
        source=window,
        is_labeled=question.is_labeled,
    )

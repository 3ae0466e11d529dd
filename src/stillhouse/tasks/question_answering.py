"""Answers that stand in a passage: where they begin and where they end.

A window in which the answer does not stand has its first token for both (Devlin et al. 2019,
section 4.2), so that the logits of different windows can be compared. Its two logits together are
the null score of a window; that of a question, which may have no answer, is the lowest of them.

Axes: B windows, T tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row, read_rows
from stillhouse.models.task_models import TaskHead
from stillhouse.tasks.encoded import EncodedExample, OutputKind, TaskBatch
from stillhouse.tasks.metrics import PERCENT, MetricSamples, mean_percent
from stillhouse.tasks.model_inputs import run
from stillhouse.tasks.settings import QuestionAnsweringTask
from stillhouse.tasks.squad import Question, read_articles, read_squad, score_each
from stillhouse.tasks.squad_no_answer import Answered, chosen_threshold, measures_with_no_answers
from stillhouse.tasks.squad_windows import Found, Window, best_answers, windows_of

FAR_BELOW = -1e9  # a logit whose probability is 0 at any temperature, and finite
NO_THRESHOLD = 0.0  # of a model that has none, for questions of which some have no answer
FIRST = (0, 0)  # where the answer of a window is that does not show it


class QuestionAnswering:
    """The stretch of a passage that answers a question."""

    head: TaskHead = "QuestionAnswering"
    says: OutputKind = "classes"
    per_token = False
    settings: Mapping[str, Any] = {"num_labels": 2}

    def __init__(self, recipe: QuestionAnsweringTask) -> None:
        self.recipe = recipe

    def read(self, path: Path, *, targets: bool = True) -> list[Question]:
        """Questions in SQuAD's format; or, without targets, also a table of `question` and
        `context`, of which each row is one."""
        if targets or read_articles(path) is not None:
            return read_squad(path)
        return [
            Question(_id_of(row, number), row.text("question"), row.text("context"), ())
            for number, row in enumerate(read_rows(path, keep_blank=True))
        ]

    def read_training(self, path: Path) -> list[Question]:
        return self.read(path)

    def encode(
        self, examples: Sequence[Question], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        return [
            [_encoded(window, question) for window in windows_of(question, tokenizer, self.recipe)]
            for question in examples
        ]

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B 2 T"]:
        """The logits of beginning and of ending at each token; FAR_BELOW where no answer can."""
        found = run(model, batch)
        assert batch.choices is not None
        logits = torch.stack([found.start_logits, found.end_logits], dim=1)
        return logits.masked_fill(~batch.choices[:, None], FAR_BELOW)

    def predict(
        self, example: Question, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> list[Found]:
        """The best answers, the best first; at the end the one that says that there is none."""
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
        return [*answers, Found("", 0, null)]

    def measures(
        self, predictions: Sequence[list[Found]], examples: Sequence[Question]
    ) -> dict[str, MetricSamples]:
        """Those of SQuAD 1.1; or, where questions have no answer, of SQuAD 2.0."""
        references = [[answer.text for answer in question.answers] for question in examples]
        answered = _answered(predictions)
        if any(question.is_impossible for question in examples):
            threshold = self.recipe.null_score_diff_threshold
            threshold = NO_THRESHOLD if threshold is None else threshold
            return measures_with_no_answers(answered, references, threshold)
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
        self, predictions: Sequence[list[Found]], examples: Sequence[Question]
    ) -> float:
        """The threshold for saying that a question has no answer that is best on these examples,
        by the task's metric."""
        references = [[answer.text for answer in question.answers] for question in examples]
        return chosen_threshold(_answered(predictions), references, self.recipe.metric)

    def result(self, prediction: list[Found]) -> Any:
        """The best answer, empty where a model that has a threshold says that there is none; its
        score is its share among the best ones."""
        return _best(prediction, self.recipe.null_score_diff_threshold)

    def answer(self, prediction: list[Found], *, handle_impossible_answer: bool) -> Any:
        """The same as transformers' pipeline has it: the best stretch of the passage, whatever the
        threshold; with `handle_impossible_answer` empty where the score of no answer exceeds its by
        more than the model's threshold (0 where it has none)."""
        if not handle_impossible_answer:
            return _best(prediction, None)
        threshold = self.recipe.null_score_diff_threshold
        return _best(prediction, NO_THRESHOLD if threshold is None else threshold)


def num_unseen_answers(
    examples: Sequence[Question], encoded: Sequence[Sequence[EncodedExample]]
) -> int:
    """Questions of whose answer no window shows all, so that each has that there is none."""
    return sum(
        bool(question.answers)
        and all(each.target is not None and (each.target == FIRST).all() for each in sequences)
        for question, sequences in zip(examples, encoded, strict=True)
    )


def _answered(predictions: Sequence[list[Found]]) -> Answered:
    texts = [found[0].text for found in predictions]
    # Where no window has an answer the only one is that there is none.
    differences = [
        found[-1].score - (found[0].score if len(found) > 1 else FAR_BELOW) for found in predictions
    ]
    return Answered(texts, np.array(differences))


def _best(prediction: list[Found], threshold: float | None) -> dict[str, Any]:
    """The best answer, among them that there is none where there is a threshold for it."""
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
    """The first of the answers is what a model learns; of no answer, the first token."""
    answers = question.answers
    choices = window.in_passage.copy()
    choices[0] = True
    place = (window.place_of(answers[0]) if answers else None) or FIRST
    return EncodedExample(
        window.input_ids,
        window.token_type_ids,
        np.array(place, np.int64),
        choices,
        is_cut=window.is_cut,
        source=window,
        is_labeled=question.is_labeled,
    )

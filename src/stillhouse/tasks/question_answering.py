"""Answers that stand in a passage: where they begin and where they end.

A window in which the answer does not stand has its first token for both (Devlin et al. 2019,
section 4.2), so that the logits of different windows can be compared.

Axes: B windows, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import read_rows
from stillhouse.families import TaskHead
from stillhouse.recipe_tasks import QuestionAnsweringTask
from stillhouse.tasks.encoded import Encoded, Says, TaskBatch
from stillhouse.tasks.metrics import Measure
from stillhouse.tasks.model_inputs import run
from stillhouse.tasks.squad import Answer, Question, read_articles, read_squad, score_each
from stillhouse.tasks.squad_windows import Found, Window, best_answers, windows_of

FAR_BELOW = -1e9  # a logit whose probability is 0 at any temperature, and finite
FIRST = (0, 0)  # where the answer of a window is that does not show it


class QuestionAnswering:
    """The stretch of a passage that answers a question."""

    head: TaskHead = "QuestionAnswering"
    says: Says = "classes"
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
            Question(str(number), row.text("question"), row.text("context"), ())
            for number, row in enumerate(read_rows(path, keep_blank=True))
        ]

    def read_training(self, path: Path) -> list[Question]:
        return self.read(path)

    def encode(
        self, examples: Sequence[Question], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[Encoded]]:
        return [
            [
                _encoded(window, question.answers)
                for window in windows_of(question, tokenizer, self.recipe)
            ]
            for question in examples
        ]

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B 2 T"]:
        """The logits of beginning and of ending at each token; FAR_BELOW where no answer can."""
        found = run(model, batch)
        assert batch.choices is not None
        logits = torch.stack([found.start_logits, found.end_logits], dim=1)
        return logits.masked_fill(~batch.choices[:, None], FAR_BELOW)

    def predict(
        self, example: Question, sequences: Sequence[Encoded], outputs: Sequence[Tensor]
    ) -> list[Found]:
        """The best answers, the best first."""
        windows = [each.source for each in sequences]
        starts, ends = (
            [
                output[place, : len(window.input_ids)].numpy()
                for window, output in zip(windows, outputs, strict=True)
            ]
            for place in (0, 1)
        )
        return best_answers(example.context, windows, starts, ends, self.recipe)

    def measures(
        self, predictions: Sequence[list[Found]], examples: Sequence[Question]
    ) -> dict[str, Measure]:
        said = {
            question.id: found[0].text if found else ""
            for question, found in zip(examples, predictions, strict=True)
        }
        right = {question.id: [each.text for each in question.answers] for question in examples}
        scores = [asdict(each) for each in score_each(said, right).values()]
        full = np.ones(len(scores))
        return {
            name: Measure(_mean_in_percent, np.array([each[name] for each in scores]), full)
            for name in ("exact_match", "f1")
        }

    def result(self, prediction: list[Found]) -> Any:
        """The best answer; its score is its share among the best ones."""
        if not prediction:
            return {"score": 0.0, "start": 0, "end": 0, "answer": ""}
        best = prediction[0]
        shares = np.exp([each.score - best.score for each in prediction])
        return {
            "score": float(1 / shares.sum()),
            "start": best.start,
            "end": best.start + len(best.text),
            "answer": best.text,
        }


def _encoded(window: Window, answers: Sequence[Answer]) -> Encoded:
    """The first of the answers is what a model learns."""
    choices = window.in_passage.copy()
    choices[0] = True
    place = (window.place_of(answers[0]) if answers else None) or FIRST
    return Encoded(
        window.input_ids,
        window.token_type_ids,
        np.array(place, np.int64),
        choices,
        source=window,
        is_labeled=bool(answers),
    )


def _mean_in_percent(scores: np.ndarray, _: np.ndarray) -> float:
    return float(100 * scores.mean())

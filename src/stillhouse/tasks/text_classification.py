"""Classes and numbers for texts and pairs of texts: one class, several at once, or a value.

Axes: B sequences, C classes, N examples.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.fetch import name_of
from stillhouse.data.rows import Row, read_rows
from stillhouse.errors import DataError, RecipeError
from stillhouse.models.task_models import TaskHead
from stillhouse.tasks.encoded import EncodedExample, OutputKind, TaskBatch
from stillhouse.tasks.labels import (
    Labels,
    alike,
    joined_by,
    label_name,
    label_names,
    listed,
    sorted_labels,
)
from stillhouse.tasks.metrics import CORRELATION, METRICS, MetricSamples
from stillhouse.tasks.model_inputs import run
from stillhouse.tasks.settings import ClassificationTask, RegressionTask
from stillhouse.tasks.texts import TextExample, as_number, encode_texts, read_texts

TWO_CLASSES = ("f1", "accuracy_and_f1")
ANY_CLASSES = ("accuracy", "matthews")
MULTI_LABEL = ("accuracy", "f1")


class TextClassification:
    """One of several labels; or, with `multi_label`, any of them."""

    head: TaskHead = "SequenceClassification"
    per_token = False

    def __init__(self, recipe: ClassificationTask, labels: Labels) -> None:
        """The labels in the order of the model's outputs.

        Raises:
            RecipeError: a metric of two classes for more of them, or for two of which nothing says
                which one is positive.
        """
        if recipe.multi_label and recipe.metric not in MULTI_LABEL:
            raise RecipeError(
                f"The metric {recipe.metric} is not of several labels at once. Take "
                f"{' or '.join(MULTI_LABEL)}."
            )
        if not recipe.multi_label and len(labels.names) > 2 and recipe.metric in TWO_CLASSES:
            raise RecipeError(
                f"The metric {recipe.metric} is of two labels, but there are {len(labels.names)}: "
                f"{listed(labels.names)}. Take {' or '.join(ANY_CLASSES)}."
            )
        self.recipe = recipe
        self.spellings = labels
        self.labels = labels.names
        if recipe.metric in TWO_CLASSES and len(self.labels) == 2 and self._about is None:
            one, other = self.labels
            raise RecipeError(
                f"The metric {recipe.metric} is about one class, but nothing says which of {one} "
                f"and {other}. Name the labels in `labels` with the positive class second, such as "
                f"[{one}, {other}]; or take {' or '.join(ANY_CLASSES)}."
            )

    @property
    def _about(self) -> int | None:
        """The output of the positive class of two labels, where it is known; 1 for several at
        once, each of which holds or does not."""
        if self.recipe.multi_label:
            return 1
        return self.spellings.positive if len(self.labels) == 2 else None

    @property
    def positive_label(self) -> str | None:
        """The class that F1 is about, where it is about one."""
        place = None if self.recipe.multi_label else self._about
        return None if place is None else self.labels[place]

    @property
    def says(self) -> OutputKind:
        return "labels" if self.recipe.multi_label else "classes"

    @property
    def settings(self) -> Mapping[str, Any]:
        kind = "multi_label" if self.recipe.multi_label else "single_label"
        return {**labelled(self.labels), "problem_type": f"{kind}_classification"}

    def read(self, path: Path, *, targets: bool = True) -> list[TextExample]:
        target = partial(self._target_of, path) if targets else None
        columns, header = self.recipe.columns, self.recipe.header
        return read_texts(path, columns, header, target, keep_blank=not targets)

    def _target_of(self, path: Path, row: Row, column: str) -> int | tuple[int, ...]:
        value, several = row.value(column), self.recipe.multi_label
        found = self.spellings.find_all(value) if several else self.spellings.find(value)
        if found is not None:
            return found
        what = "names out of" if several else "one of"
        message = str(row.wrong(column, f"{what} {listed(self.labels)}"))
        shown = labels_shown(self.recipe, path)
        if not any(self.spellings.find(name) is not None for name in shown):
            message += f" None of the file's labels is known; they are {listed(shown)}."
        raise DataError(message)

    def read_training(self, path: Path) -> list[TextExample]:
        return self.read(path)

    def encode(
        self, examples: Sequence[TextExample], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        unknown = () if self.recipe.multi_label else 0
        return encode_texts(examples, tokenizer, self.recipe.length, self._target, unknown=unknown)

    def _target(self, target: int | tuple[int, ...]) -> np.ndarray:
        if isinstance(target, int):
            return np.array(target, np.int64)
        return np.isin(np.arange(len(self.labels)), target).astype(np.float32)

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B C"]:
        return run(model, batch).logits

    def predict(
        self, example: TextExample, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> Float[np.ndarray, " C"]:
        """The probability of each label."""
        logits = outputs[0].double()
        return (logits.sigmoid() if self.recipe.multi_label else logits.softmax(-1)).numpy()

    def measures(
        self, predictions: Sequence[np.ndarray], examples: Sequence[TextExample]
    ) -> dict[str, MetricSamples]:
        if self.recipe.multi_label:
            right = np.stack([self._target(example.target) > 0 for example in examples])
            predicted = np.stack(predictions) > 0.5
            exact = (predicted == right).all(1)
            return {
                "accuracy": MetricSamples(METRICS["accuracy"], exact, np.ones_like(exact)),
                "f1": MetricSamples(METRICS["f1"], predicted, right),
            }
        right = np.array([example.target for example in examples])
        predicted = np.array([each.argmax() for each in predictions])
        found = {
            "accuracy": MetricSamples(METRICS["accuracy"], predicted, right),
            "matthews": MetricSamples(METRICS["matthews"], predicted, right, CORRELATION),
        }
        if self._about is not None:
            said, true = ((each == self._about).astype(int) for each in (predicted, right))
            found |= {name: MetricSamples(METRICS[name], said, true) for name in TWO_CLASSES}
        return found

    def result(self, prediction: np.ndarray) -> Any:
        """The likeliest label; of several at once those more likely than not."""
        scored = [
            {"label": label, "score": float(score)}
            for label, score in zip(self.labels, prediction, strict=True)
        ]
        if self.recipe.multi_label:
            return [each for each in scored if each["score"] > 0.5]
        return max(scored, key=lambda each: each["score"])


def positive_label(task: object) -> str | None:
    """The class that a task's F1 is about; None where it is about none, or about all."""
    return task.positive_label if isinstance(task, TextClassification) else None


def labels_shown(recipe: ClassificationTask, path: Path) -> list[str]:
    """The labels in a file, numbers in numeric order; none where it has no column of them.

    Raises:
        DataError: what cannot be read, with its file and row.
    """
    found: set[str] = set()
    column = recipe.columns.target
    for row in read_rows(path, header=recipe.header, text_column=recipe.columns.text):
        if column not in row.fields and not found:
            return []
        value = row.value(column)
        names = label_names(value) if recipe.multi_label else [label_name(value)]
        if names is None or None in names:
            several = "labels: a list of them, or text with commas between them"
            raise row.wrong(column, several if recipe.multi_label else "a label")
        found.update(name for name in names if name is not None)
    return sorted_labels(found)


def check_spellings(found: Collection[str], recipe: ClassificationTask, path: Path) -> None:
    """Refuse labels that are most likely others.

    Raises:
        DataError: labels that differ in case alone; several labels as one.
    """
    where = f"{name_of(path)}: the column {recipe.columns.target!r}"
    advice = "or, where they are right as they are, name all labels in `labels`."
    if names := alike(found):
        raise DataError(
            f"{where} holds labels that differ in upper and lower case alone: {listed(names)}. "
            f"Spell each label in one way; {advice}"
        )
    if recipe.multi_label and (joined := joined_by(found)):
        raise DataError(
            f"{where} holds {joined[0]!r:.80}, whose parts between {joined[1]!r} are labels too. "
            f"Put commas between labels, or give lists; {advice}"
        )


class TextRegression:
    """A number."""

    head: TaskHead = "SequenceClassification"
    says: OutputKind = "values"
    per_token = False

    def __init__(self, recipe: RegressionTask) -> None:
        self.recipe = recipe

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**labelled(["value"]), "problem_type": "regression"}

    def read(self, path: Path, *, targets: bool = True) -> list[TextExample]:
        columns, header = self.recipe.columns, self.recipe.header
        return read_texts(
            path, columns, header, Row.number if targets else None, keep_blank=not targets
        )

    def read_training(self, path: Path) -> list[TextExample]:
        return self.read(path)

    def encode(
        self, examples: Sequence[TextExample], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        return encode_texts(examples, tokenizer, self.recipe.length, as_number, unknown=0.0)

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B 1"]:
        return run(model, batch).logits

    def predict(
        self, example: TextExample, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> float:
        return float(outputs[0])

    def measures(
        self, predictions: Sequence[float], examples: Sequence[TextExample]
    ) -> dict[str, MetricSamples]:
        right = np.array([example.target for example in examples])
        names = ("pearson", "spearman", "pearson_and_spearman")
        predicted = np.array(predictions)
        return {name: MetricSamples(METRICS[name], predicted, right, CORRELATION) for name in names}

    def result(self, prediction: float) -> Any:
        return {"label": "value", "score": prediction}


def labelled(labels: Sequence[str]) -> dict[str, Any]:
    """The labels as a configuration names them."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }

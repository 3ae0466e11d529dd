"""Classification and regression of texts and pairs of texts.

Axes: B sequences, C classes, N examples.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.data.rows import Row, name_of, read_rows
from stillhouse.errors import DataError, RecipeError
from stillhouse.tasks.encoded import (
    EncodedExample,
    TextExample,
    as_number,
    encode_texts,
    read_texts,
)
from stillhouse.tasks.labels import (
    Labels,
    alike,
    joined_by,
    label_name,
    label_names,
    labelled,
    labels_of,
    labels_of_data,
    listed,
    sorted_labels,
)
from stillhouse.tasks.metrics import CORRELATION, METRICS, MetricSamples, correlation_samples
from stillhouse.tasks.settings import ClassificationTask, RegressionTask
from stillhouse.tasks.task import Task

TWO_CLASSES = ("f1", "accuracy_and_f1")
ANY_CLASSES = ("accuracy", "matthews")
MULTI_LABEL = ("accuracy", "f1")
TextSettings = TypeVar("TextSettings", bound=ClassificationTask | RegressionTask)


class _TextTask(Task[TextSettings]):
    """A task whose examples are texts or pairs of texts in the columns of a table."""

    head = "SequenceClassification"

    def is_labeled(self, path: Path) -> bool:
        columns, header = self.recipe.columns, self.recipe.header
        return columns.target in read_rows(path, columns.text, header=header, plain=True)[0].fields

    def read(self, path: Path, *, labeled: bool = True) -> list[TextExample]:
        target = partial(self._target_of, path) if labeled else None
        columns, header = self.recipe.columns, self.recipe.header
        return read_texts(path, columns, header, target, keep_blank=not labeled)

    @abstractmethod
    def _target_of(self, path: Path, row: Row, column: str) -> Any: ...

    def label_set(self, example: TextExample) -> set[Any] | None:
        label = example.target
        if isinstance(label, tuple):
            label = tuple(sorted(label))
        return None if label is None else {label}

    def encode(
        self, examples: Sequence[TextExample], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        return encode_texts(examples, tokenizer, self.recipe.max_length, self._target)

    @abstractmethod
    def _target(self, value: Any) -> np.ndarray:
        """A label as an array; any for None."""


class TextClassification(_TextTask[ClassificationTask]):
    """One of several labels; with `multi_label`, any number of them."""

    advice = "Give examples of at least two labels."

    def __init__(self, recipe: ClassificationTask, labels: Sequence[str] | Labels = ()) -> None:
        """The labels in the order of the model's outputs.

        Raises:
            RecipeError: a metric of two classes for more classes, or without a positive class.
        """
        super().__init__(recipe)
        if not isinstance(labels, Labels):
            labels = Labels.given(recipe.labels or labels, by_recipe=recipe.labels is not None)
        if recipe.multi_label and recipe.metric not in MULTI_LABEL:
            raise RecipeError(
                f"The metric {recipe.metric} is not defined for multi_label. Use "
                f"{' or '.join(MULTI_LABEL)}."
            )
        if not recipe.multi_label and len(labels.names) > 2 and recipe.metric in TWO_CLASSES:
            raise RecipeError(
                f"The metric {recipe.metric} is of two labels, but there are {len(labels.names)}: "
                f"{listed(labels.names)}. Take {' or '.join(ANY_CLASSES)}."
            )
        self.spellings = labels
        self.labels = labels.names
        self.output_kind = "labels" if recipe.multi_label else "classes"
        problem = f"{'multi' if recipe.multi_label else 'single'}_label_classification"
        self.model_settings = {**labelled(self.labels), "problem_type": problem}
        if len(self.labels) == 2 and not recipe.multi_label:
            self.positive_label = labels.positive
            if self.positive_label is None and recipe.metric in TWO_CLASSES:
                one, other = self.labels
                raise RecipeError(
                    f"The metric {recipe.metric} needs a positive class, but it is not known which "
                    f"of {one} and {other} it is. Name the labels in `labels` with the positive "
                    f"class second, such as [{one}, {other}]; or use {' or '.join(ANY_CLASSES)}."
                )

    def for_model(self, folder: Path, config: PretrainedConfig) -> "TextClassification":
        own = labels_of(config)
        if self.recipe.labels:
            return self.with_labels_of(own, f"the model in {folder}")
        return TextClassification(self.recipe, Labels.of_model(own))

    def with_labels_of(self, own: Sequence[str], model: str) -> "TextClassification":
        if self.recipe.labels:
            return TextClassification(self.recipe, self.spellings.in_order_of(own, model))
        return TextClassification(self.recipe, labels_of_data(self.labels, own, model))

    def find_label(self, name: str) -> int | None:
        return self.spellings.find(name)

    def labels_in(self, path: Path, names: Sequence[str] = ()) -> list[str]:
        if self.recipe.labels is not None:
            return []
        shown = labels_shown(self.recipe, path)
        if not names:  # of a model that they are matched with
            check_spellings(shown, self.recipe, path)
        return shown

    def label_names(self, labels: set[Any] | None) -> set[str]:
        places = (each if isinstance(each, tuple) else (each,) for each in labels or ())
        return {self.labels[place] for some in places for place in some}

    def describe_label(self, label: Any) -> str:
        names = sorted(self.label_names({label}))
        return f"have the same label, {listed(names)}" if names else "have no label"

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

    def _target(self, value: int | tuple[int, ...] | None) -> np.ndarray:
        if self.recipe.multi_label:
            return np.isin(np.arange(len(self.labels)), value or ()).astype(np.float32)
        return np.array(value or 0, np.int64)

    def predict(
        self, example: TextExample, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> Float[np.ndarray, " C"]:
        """The probability of each label."""
        logits = outputs[0].double()
        return (logits.sigmoid() if self.recipe.multi_label else logits.softmax(-1)).numpy()

    def metric_samples(
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
        if self.positive_label is not None:
            positive = self.labels.index(self.positive_label)
            pair = [(each == positive).astype(int) for each in (predicted, right)]
            found |= {name: MetricSamples(METRICS[name], *pair) for name in TWO_CLASSES}
        return found

    def result(self, prediction: np.ndarray) -> Any:
        """The most probable label; with `multi_label` those of a probability above one half."""
        scored = [
            {"label": label, "score": float(score)}
            for label, score in zip(self.labels, prediction, strict=True)
        ]
        if self.recipe.multi_label:
            return [each for each in scored if each["score"] > 0.5]
        return max(scored, key=lambda each: each["score"])


def labels_shown(recipe: ClassificationTask, path: Path) -> list[str]:
    """The labels in a file, numbers in numeric order; none where it has no column of them.

    Raises:
        DataError: what cannot be read, with its file and row.
    """
    found: set[str] = set()
    column = recipe.columns.target
    for row in read_rows(path, recipe.columns.text, header=recipe.header, plain=True):
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
    """Refuse labels that are probably misspelled.

    Raises:
        DataError: labels that differ only in case; several labels as one.
    """
    where = f"{name_of(path)}: the column {recipe.columns.target!r}"
    advice = "or, if they are correct, name all labels in `labels`."
    if names := alike(found):
        raise DataError(
            f"{where} has labels that differ only in case: {listed(names)}. Spell each label "
            f"in one way; {advice}"
        )
    if recipe.multi_label and (joined := joined_by(found)):
        raise DataError(
            f"{where} holds {joined[0]!r:.80}, whose parts between {joined[1]!r} are labels too. "
            f"Put commas between labels, or give lists; {advice}"
        )


class TextRegression(_TextTask[RegressionTask]):
    """A number."""

    output_kind = "regression"
    model_settings: Mapping[str, Any] = {**labelled(["value"]), "problem_type": "regression"}

    def _target_of(self, path: Path, row: Row, column: str) -> float:
        return row.number(column)

    def _target(self, value: float | None) -> np.ndarray:
        return as_number(value)

    def predict(
        self, example: TextExample, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> float:
        return float(outputs[0])

    def metric_samples(
        self, predictions: Sequence[float], examples: Sequence[TextExample]
    ) -> dict[str, MetricSamples]:
        return correlation_samples(predictions, [example.target for example in examples])

    def result(self, prediction: float) -> Any:
        return {"label": "value", "score": prediction}

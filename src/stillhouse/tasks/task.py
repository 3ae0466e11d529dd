"""The interface of a task: examples from a file, encoded sequences, predictions, metrics.

Training, scoring and inference know a task only by this interface. A new task is a subclass with
its settings in `settings.py` and a line in `registry.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import blank_rows, name_of
from stillhouse.errors import DataError
from stillhouse.families.products import fast_products
from stillhouse.models.special_ids import padding_id
from stillhouse.models.task_models import TaskHead
from stillhouse.tasks.encoded import EncodedExample, OutputKind, TaskBatch, collate, forward
from stillhouse.tasks.labels import Labels, is_generic
from stillhouse.tasks.metrics import UNDEFINED_ON_CONSTANT_LABELS, MetricSamples
from stillhouse.tasks.settings import TaskRecipe

Settings = TypeVar("Settings", bound=TaskRecipe)
MAX_BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}


class Task(ABC, Generic[Settings]):
    """A task with its settings. Examples and predictions have types of the task's own."""

    head: TaskHead
    output_kind: OutputKind = "classes"
    per_token: ClassVar[bool] = False  # whether each token has its own target
    trainable: ClassVar[bool] = True
    model_settings: Mapping[str, Any] = {}  # of the configuration of a model with this head
    advice: ClassVar[str] = "Give examples of different values."  # where all labels are the same
    positive_label: str | None = None  # the positive class of F1, where there is one

    def __init__(self, recipe: Settings, labels: Sequence[str] | Labels = ()) -> None:
        """The task of a recipe.

        Args:
            labels: In the order of the model's outputs, where the recipe does not name them.
        """
        self.recipe = recipe
        self.labels: list[str] = []  # in the order of the model's outputs

    def for_model(self, folder: Path, config: PretrainedConfig) -> "Task":
        """The task as the model of a folder performs it.

        Raises:
            RecipeError: the model has other labels, or another way to make its outputs.
        """
        return self.for_config(config)

    def for_config(self, config: PretrainedConfig) -> "Task":
        """The task with the settings that the model's configuration holds."""
        return self

    def with_labels_of(self, own: Sequence[str], model: str) -> "Task":
        """The task with its labels in the order of a model's outputs.

        Args:
            own: The names of the model's outputs.
            model: What a message calls the model.

        Raises:
            RecipeError: the model has other labels.
        """
        return self

    def find_label(self, name: str) -> int | None:
        """The output of a label, by the name that a model has for it."""
        return self.labels.index(name) if name in self.labels else None

    def output_order(self, own: Sequence[str]) -> list[int] | None:
        """For each label the output of a model that has it; None where the names do not tell.

        Args:
            own: The names of the model's outputs.
        """
        places = [self.find_label(name) for name in own]
        size = len(self.labels)
        if is_generic(own) or len(own) != size or set(places) != set(range(size)):
            return None
        return [places.index(place) for place in range(size)]

    @abstractmethod
    def read(self, path: Path, *, labeled: bool = True) -> list[Any]:
        """The examples of a file, in order; without labels where `labeled` is False.

        Raises:
            DataError: what cannot be read, with its file and row.
        """

    def sources(self, path: Path) -> list[Path]:
        """The files that `read` reads: this one, and those that belong to it."""
        return [path]

    def read_training(self, path: Path) -> list[Any]:
        """The training examples of a file.

        Raises:
            DataError: what cannot be read, with its file and row.
        """
        return self.read(path)

    def is_labeled(self, path: Path) -> bool:
        """Whether a file of training data has labels."""
        return True

    def labels_in(self, path: Path, names: Sequence[str] = ()) -> list[str]:
        """The labels that a file of training data shows, where the recipe does not name them.

        Args:
            names: The names of a model's outputs.

        Raises:
            DataError: what cannot be read, with its file and row; labels that look like others.
        """
        return []

    def blank_rows(self, path: Path) -> list[int]:
        """The numbers of the rows without any field, where blank lines have no meaning.

        Raises:
            DataError: what cannot be read, with its file and row.
        """
        return blank_rows(path, header=getattr(self.recipe, "header", None))

    def distinct_labels(self, examples: Sequence[Any]) -> set[Any] | None:
        """The labels of the examples; None where some have none."""
        found = [self.label_set(example) for example in examples]
        return None if None in found else {label for each in found for label in each or ()}

    def label_set(self, example: Any) -> set[Any] | None:
        """What is in an example of what a metric distinguishes; None where it has no label."""
        return None

    def label_names(self, labels: set[Any] | None) -> set[str]:
        """The names of labels, or of the kinds of entities; none for other tasks."""
        return set()

    def describe_label(self, label: Any) -> str:
        """The predicate of a message about examples that all have this label."""
        return f"have the same value, {label}"

    @abstractmethod
    def encode(
        self, examples: Sequence[Any], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        """For each example the sequences of the model's input, at least one."""

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B ..."]:
        """Logits, a value or an embedding for each sequence; where per token, for padding too."""
        return forward(model, batch).logits

    def all_outputs(
        self, model: PreTrainedModel, sequences: Sequence[EncodedExample]
    ) -> list[Float[Tensor, "..."]]:
        """The outputs for each sequence, in order, computed in batches of similar length."""
        outputs: dict[int, Tensor] = {}
        for places in batches_by_length(sequences, MAX_BATCH_TOKENS[model.device.type]):
            batch = collate(
                [sequences[place] for place in places],
                pad_token_id=padding_id(model.config),
                per_token=self.per_token,
            )
            with torch.inference_mode(), fast_products(model.device):
                found = self.outputs(model, batch.to(model.device)).float().cpu()
            outputs |= dict(zip(places, found, strict=True))
        return [outputs[place] for place in range(len(sequences))]

    @abstractmethod
    def predict(
        self, example: Any, sequences: Sequence[EncodedExample], outputs: Sequence[Any]
    ) -> Any:
        """The prediction for an example, from the outputs for each of its sequences."""

    @abstractmethod
    def metric_samples(
        self, predictions: Sequence[Any], examples: Sequence[Any]
    ) -> dict[str, MetricSamples]:
        """The task's metrics by name, among them that of the recipe."""

    @abstractmethod
    def result(self, prediction: Any) -> Any:
        """A prediction as JSON, in the shape of transformers' pipelines."""

    @property
    def text_length(self) -> int:
        """The number of tokens at which a text is truncated."""
        return self.recipe.max_length


def predict(
    task: Task,
    model: PreTrainedModel,
    examples: Sequence[Any],
    encoded: Sequence[Sequence[EncodedExample]],
) -> list[Any]:
    """The prediction for each example, in order, computed on the model's device.

    Args:
        encoded: The result of `task.encode` for the examples.
    """
    outputs = task.all_outputs(model, [each for sequences in encoded for each in sequences])
    own = iter(outputs)
    return [
        task.predict(example, sequences, [next(own) for _ in sequences])
        for example, sequences in zip(examples, encoded, strict=True)
    ]


def batches_by_length(sequences: Sequence[EncodedExample], tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of similar length, longest first, in batches of at most `tokens` tokens
    including padding, or of one sequence."""
    order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place].input_ids))
    first = 0
    while first < len(order):
        size = max(1, tokens // len(sequences[order[first]].input_ids))
        yield order[first : first + size]
        first += size


def check_measurable(task: Task, examples: Sequence[Any], path: Path) -> None:
    """Refuse examples on which the task's metric is undefined: a correlation with constant values,
    or entities where there are none.

    Raises:
        DataError: such examples.
    """
    found = task.distinct_labels(examples)
    if found is not None and len(found) < 2 and task.recipe.metric in UNDEFINED_ON_CONSTANT_LABELS:
        raise DataError(
            f"{name_of(path)}: all {len(examples):,} examples "
            f"{task.describe_label(next(iter(found), None))}, so {task.recipe.metric} cannot be "
            "measured on them. Give examples that differ."
        )

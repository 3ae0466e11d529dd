"""A task: examples from a file, the sequences a model reads, its answers, and what they are worth.

One interface for all tasks: what trains a model, what scores one and what puts one to work know
nothing else of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.models.task_models import TaskHead
from stillhouse.tasks.encoded import EncodedExample, OutputKind, TaskBatch
from stillhouse.tasks.metrics import MetricSamples
from stillhouse.tasks.settings import QuestionAnsweringTask, TaskRecipe


@runtime_checkable
class Task(Protocol):
    """What is asked of a model. Examples and predictions are of types of the task's own."""

    @property
    def recipe(self) -> TaskRecipe: ...

    @property
    def head(self) -> TaskHead: ...

    @property
    def says(self) -> OutputKind: ...

    @property
    def per_token(self) -> bool:
        """Whether each token has a target of its own."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the configuration of a model with this head says of it."""
        ...

    def read(self, path: Path, *, targets: bool = True) -> list[Any]:
        """The examples of a file, in order; without `targets` none are asked for.

        Raises:
            DataError: what cannot be read, with its file and row.
        """
        ...

    def read_training(self, path: Path) -> list[Any]:
        """The examples of a file that a model learns from.

        Raises:
            DataError: what cannot be read, with its file and row.
        """
        ...

    def encode(
        self, examples: Sequence[Any], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        """For each example the sequences that a model reads, at least one."""
        ...

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B ..."]:
        """What the model says of each sequence: logits, values or a vector. Where it speaks of
        tokens, it does so of padding too."""
        ...

    def predict(
        self, example: Any, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> Any:
        """The model's answer to an example, from its outputs for each of its sequences."""
        ...

    def measures(
        self, predictions: Sequence[Any], examples: Sequence[Any]
    ) -> dict[str, MetricSamples]:
        """The task's metrics by name, the recipe's among them."""
        ...

    def result(self, prediction: Any) -> Any:
        """A prediction as JSON, in the shape of transformers' pipelines."""
        ...


def text_length(recipe: TaskRecipe) -> int:
    """Tokens of a text after which the rest is not read: of a question, whose context is read
    whole, or of what a sequence holds."""
    is_question = isinstance(recipe, QuestionAnsweringTask)
    return recipe.question_length if is_question else recipe.length

"""Embeddings of texts, close for texts of similar meaning.

Axes: B sequences, T tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tokenizers.normalizers import Lowercase
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row
from stillhouse.errors import ModelError
from stillhouse.tasks.encoded import EncodedExample, TaskBatch, forward
from stillhouse.tasks.metrics import MetricSamples, correlation_samples
from stillhouse.tasks.sentence_transformers import (
    MODULES,
    EmbeddingSettings,
    check_recipe_of,
    read_embedding_settings,
)
from stillhouse.tasks.settings import Columns, EmbeddingsTask
from stillhouse.tasks.task import Task
from stillhouse.tasks.texts import TextExample, as_number, encode_texts, read_texts


class Embeddings(Task[EmbeddingsTask]):
    """An embedding of each text, normalized unless the model does not; pairs are scored by cosine
    similarity."""

    head = "Body"
    output_kind = "embeddings"
    settings = EmbeddingSettings()  # of a model's folder, beyond the recipe

    def for_model(self, folder: Path, config: PretrainedConfig) -> "Embeddings":
        check_recipe_of(folder, self.recipe)
        found = Embeddings(self.recipe)
        if (folder / MODULES).is_file():
            found.settings = read_embedding_settings(folder)
        return found

    def distinct_labels(self, examples: Sequence[TextExample]) -> set[float] | None:
        if any(example.pair is None for example in examples):
            return None
        return {example.target for example in examples}

    def read(self, path: Path, *, labeled: bool = True) -> list[TextExample]:
        """Pairs of texts and their similarity; without labels, single texts."""
        columns, header = self.recipe.columns, self.recipe.header
        if labeled:
            return read_texts(path, columns, header, Row.number)
        columns = columns.model_copy(update={"pair": None})
        return read_texts(path, columns, header, None, keep_blank=True)

    def read_training(self, path: Path) -> list[TextExample]:
        """Single texts, each a target."""
        columns = Columns(text=self.recipe.train_column)
        return [replace(each, target=0.0) for each in read_texts(path, columns, None, None)]

    def encode(
        self, examples: Sequence[TextExample], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        """A sequence for each of an example's texts."""
        texts = [
            TextExample(self._prepared(text), target=each.target)
            for each in examples
            for text in _texts(each)
        ]
        sequences = iter(
            encode_texts(texts, tokenizer, self.recipe.max_length, as_number, unknown=0.0)
        )
        return [[next(sequences)[0] for _ in _texts(each)] for each in examples]

    def _prepared(self, text: str) -> str:
        text = self.settings.prompt + text
        return Lowercase().normalize_str(text) if self.settings.lower_case else text

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B D"]:
        hidden = forward(model, batch).last_hidden_state.float()
        mask = batch.attention_mask[:, :, None]
        pooled = (
            hidden[:, 0] if self.recipe.pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        )
        return F.normalize(pooled, dim=-1) if self.settings.normalize else pooled

    def predict(
        self, example: TextExample, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> Float[np.ndarray, "_ D"]:
        """The embedding of each of the example's texts."""
        return np.stack([output.numpy() for output in outputs])

    def metric_samples(
        self, predictions: Sequence[np.ndarray], examples: Sequence[TextExample]
    ) -> dict[str, MetricSamples]:
        """Correlations of the pairs' cosine similarity with their labels.

        Raises:
            ModelError: the model's embeddings are to be compared by another function.
        """
        settings = self.settings
        if settings.similarity not in ("cosine", "dot" if settings.normalize else ""):
            raise ModelError(
                f"The model's embeddings are compared by {settings.similarity} "
                "(similarity_fn_name); Stillhouse scores them by cosine similarity."
            )
        cosines = [_cosine(*pair.astype(np.float64)) for pair in predictions]
        return correlation_samples(cosines, [example.target for example in examples])

    def result(self, prediction: np.ndarray) -> Any:
        """The embedding of the text."""
        return prediction[0].tolist()


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def _texts(example: TextExample) -> tuple[str, ...]:
    return (example.text,) if example.pair is None else (example.text, example.pair)

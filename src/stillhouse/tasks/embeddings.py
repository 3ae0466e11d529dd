"""Vectors for texts, near for texts that mean the same.

Axes: B sequences, T tokens, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tokenizers.normalizers import Lowercase
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row
from stillhouse.errors import ModelError
from stillhouse.models.task_models import TaskHead
from stillhouse.tasks.encoded import EncodedExample, OutputKind, TaskBatch
from stillhouse.tasks.metrics import CORRELATION, METRICS, MetricSamples
from stillhouse.tasks.model_inputs import run
from stillhouse.tasks.sentence_transformers import VectorSettings
from stillhouse.tasks.settings import Columns, EmbeddingsTask
from stillhouse.tasks.texts import TextExample, as_number, encode_texts, read_texts


class Embeddings:
    """A vector for each text, of length 1 unless its model says otherwise; pairs are scored by
    their cosine."""

    head: TaskHead = "Body"
    says: OutputKind = "vectors"
    per_token = False
    settings: Mapping[str, Any] = {}

    def __init__(self, recipe: EmbeddingsTask, vectors: VectorSettings | None = None) -> None:
        """Args: vectors: What a model's folder says beyond the recipe."""
        self.recipe = recipe
        self._vectors = vectors or VectorSettings()

    def read(self, path: Path, *, targets: bool = True) -> list[TextExample]:
        """Pairs of texts and how near they are; or, without targets, texts alone."""
        columns, header = self.recipe.columns, self.recipe.header
        if targets:
            return read_texts(path, columns, header, Row.number)
        columns = columns.model_copy(update={"pair": None})
        return read_texts(path, columns, header, None, keep_blank=True)

    def read_training(self, path: Path) -> list[TextExample]:
        """Texts alone, each of which is asked for its vector."""
        columns = Columns(text=self.recipe.train_column)
        return [replace(each, target=0.0) for each in read_texts(path, columns, None, None)]

    def encode(
        self, examples: Sequence[TextExample], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        """A sequence for each of an example's texts."""
        texts = [
            TextExample(self._as_read(text), target=each.target)
            for each in examples
            for text in _texts(each)
        ]
        sequences = iter(encode_texts(texts, tokenizer, self.recipe.length, as_number, unknown=0.0))
        return [[next(sequences)[0] for _ in _texts(each)] for each in examples]

    def _as_read(self, text: str) -> str:
        text = self._vectors.prompt + text
        return Lowercase().normalize_str(text) if self._vectors.lower_case else text

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B D"]:
        hidden = run(model, batch).last_hidden_state.float()
        mask = batch.attention_mask[:, :, None]
        pooled = (
            hidden[:, 0] if self.recipe.pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        )
        return F.normalize(pooled, dim=-1) if self._vectors.normalize else pooled

    def predict(
        self, example: TextExample, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> Float[np.ndarray, "_ D"]:
        """The vector of each of the example's texts."""
        return np.stack([output.numpy() for output in outputs])

    def measures(
        self, predictions: Sequence[np.ndarray], examples: Sequence[TextExample]
    ) -> dict[str, MetricSamples]:
        """Of the cosines of the examples' pairs.

        Raises:
            ModelError: vectors that were made to be compared otherwise.
        """
        if self._vectors.similarity not in ("cosine", "dot" if self._vectors.normalize else ""):
            raise ModelError(
                f"The model's vectors are made to be compared by {self._vectors.similarity} "
                "(similarity_fn_name); Stillhouse scores them by their cosine."
            )
        cosines = np.array([_cosine(*vectors.astype(np.float64)) for vectors in predictions])
        right = np.array([example.target for example in examples])
        names = ("pearson", "spearman", "pearson_and_spearman")
        return {name: MetricSamples(METRICS[name], cosines, right, CORRELATION) for name in names}

    def result(self, prediction: np.ndarray) -> Any:
        """The vector of the text."""
        return prediction[0].tolist()


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def _texts(example: TextExample) -> tuple[str, ...]:
    return (example.text,) if example.pair is None else (example.text, example.pair)

"""Embeddings of texts, close for texts of similar meaning, and the files of sentence-transformers
in a model folder, which say how the model makes them.

Axes: B sequences, T tokens, D hidden size.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from tokenizers.normalizers import Lowercase
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row
from stillhouse.errors import ModelError, RecipeError
from stillhouse.models.special_ids import read_json, read_settings
from stillhouse.tasks.encoded import (
    EncodedExample,
    TaskBatch,
    TextExample,
    as_number,
    encode_texts,
    forward,
    read_texts,
)
from stillhouse.tasks.metrics import MetricSamples, correlation_samples
from stillhouse.tasks.settings import Columns, EmbeddingsTask
from stillhouse.tasks.task import Task

MODULES = "modules.json"
POOLING = "1_Pooling"
STEPS = ("Transformer", "Pooling", "Normalize")
SETTINGS, TEXTS = "config_sentence_transformers.json", "sentence_bert_config.json"
UNLIMITED = 10**6  # transformers writes 1e30 where a tokenizer has no limit


@dataclass(frozen=True)
class EmbeddingSettings:
    """How the model of a folder makes embeddings.

    Attributes:
        max_length: The number of tokens at which texts are truncated; None: the model's context.
        normalize: Whether embeddings are scaled to length 1.
        lower_case: Whether texts are lower-cased first.
        prompt: The text put before every text.
        similarity: The function that compares two embeddings.
    """

    pooling: Literal["mean", "cls"] = "mean"
    max_length: int | None = None
    normalize: bool = True
    lower_case: bool = False
    prompt: str = ""
    similarity: str = "cosine"


def read_embedding_settings(folder: Path) -> EmbeddingSettings | None:
    """The settings of a folder's files, as sentence-transformers reads them; None without them.

    Raises:
        ModelError: modules that are not supported, or files that cannot be read.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = [each if isinstance(each, dict) else {} for each in read_json(folder / MODULES, list)]
    steps = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    places = [str(module.get("path", "")) for module in modules]
    if len(steps) < 2 or tuple(steps) != STEPS[: len(steps)] or places[0]:
        raise ModelError(
            f"{folder / MODULES} asks for {', '.join(steps) or 'nothing'}"
            f"{f' in {places[0]}' if places and places[0] else ''}; Stillhouse supports a "
            "Transformer in the folder itself, then Pooling, then optionally Normalize."
        )
    settings = read_settings(folder / SETTINGS)
    _check_settings(folder, settings)
    prompt = _default_prompt(folder / SETTINGS, settings)
    length, lower_case = _text_settings(folder)
    similarity = settings.get("similarity_fn_name") or "cosine"
    pooling = _pooling(folder / places[1] / "config.json", has_prompt=bool(prompt))
    return EmbeddingSettings(pooling, length, len(steps) > 2, lower_case, prompt, str(similarity))


def check_recipe_of(folder: Path, recipe: EmbeddingsTask, *, trains: bool = False) -> None:
    """Refuse a recipe with which the model of a folder would give other embeddings than its own.

    Args:
        trains: Whether the model is a teacher, whose texts are encoded by the recipe, without a
            prompt.

    Raises:
        ModelError: see `read_embedding_settings`.
        RecipeError: another pooling than the model's; a prompt or lower case that it needs.
    """
    own = read_embedding_settings(folder)
    if own is None:
        return
    if own.pooling != recipe.pooling:
        raise RecipeError(
            f"The task's pooling is {recipe.pooling}, but the model in {folder} pools by "
            f"{own.pooling}. Set pooling to {own.pooling}."
        )
    if trains and (own.prompt or own.lower_case):
        needed = f"the prompt {own.prompt!r} before" if own.prompt else "lower case in"
        raise RecipeError(
            f"The model in {folder} needs {needed} every text, which a student would not see. "
            "Change the texts of the task accordingly, and remove the setting from the teacher's "
            f"{SETTINGS if own.prompt else TEXTS}."
        )


def write_modules(folder: Path, task: EmbeddingsTask, hidden_size: int) -> None:
    """Write the files from which sentence-transformers loads the model."""
    places = ("", POOLING, "2_Normalize")
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": place,
            "type": f"sentence_transformers.models.{step}",
        }
        for number, (step, place) in enumerate(zip(STEPS, places, strict=True))
    ]
    pooling = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": task.pooling == "cls",
        "pooling_mode_mean_tokens": task.pooling == "mean",
    }
    for place in places[1:]:
        (folder / place).mkdir()
    for path, content in (
        (folder / MODULES, modules),
        (folder / POOLING / "config.json", pooling),
        (folder / "2_Normalize" / "config.json", {}),
        (folder / TEXTS, {"max_seq_length": task.max_length}),
    ):
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _pooling(path: Path, *, has_prompt: bool) -> Literal["mean", "cls"]:
    settings = read_json(path, dict)
    if has_prompt and settings.get("include_prompt") is False:
        raise ModelError(
            f"{path} excludes the prompt from pooling (include_prompt), and {SETTINGS} names a "
            "default prompt; Stillhouse pools all tokens."
        )
    flags = [name for name in settings if name.startswith("pooling_mode_") and settings[name]]
    modes = settings.get("pooling_mode") or flags
    wanted = modes[0] if isinstance(modes, list) and len(modes) == 1 else modes
    match wanted:
        case "mean" | "pooling_mode_mean_tokens":
            return "mean"
        case "cls" | "pooling_mode_cls_token":
            return "cls"
        case _:
            raise ModelError(
                f"{path} asks for {wanted or 'no pooling'}; Stillhouse supports the mean of the "
                "tokens and the first one (cls)."
            )


def _text_settings(folder: Path) -> tuple[int | None, bool]:
    """The number of tokens at which texts are truncated, and whether they are lower-cased."""
    files = [folder / TEXTS, *sorted(folder.glob("sentence_*_config.json"))]
    settings = next((found for file in files if (found := read_settings(file))), {})
    tokenizer = read_settings(folder / "tokenizer_config.json").get("model_max_length")
    length = settings.get("max_seq_length") or tokenizer
    if length is not None and (not isinstance(length, int) or length < 1):
        raise ModelError(
            f"max_seq_length is {length!r} in {files[0]}; it must be a number of tokens, or null."
        )
    known = length is not None and length < UNLIMITED
    return length if known else None, bool(settings.get("do_lower_case"))


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings that change embeddings beyond the modules."""
    kind, size = settings.get("model_type"), settings.get("truncate_dim")
    if kind not in (None, "SentenceTransformer"):
        raise ModelError(
            f"{folder / SETTINGS} declares the model a {kind}; Stillhouse supports "
            "SentenceTransformer, with one dense embedding per text."
        )
    if size is not None:
        raise ModelError(
            f"{folder / SETTINGS} truncates embeddings to {size} dimensions (truncate_dim), which "
            "Stillhouse does not. Remove it, and truncate them yourself, or request `dimensions` "
            "from the server."
        )
    text = (read_settings(folder / TEXTS).get("modality_config") or {}).get("text") or {}
    output = text.get("method_output_name", "last_hidden_state")
    if output != "last_hidden_state":
        raise ModelError(
            f"{folder / TEXTS} takes {output} from the model (modality_config); Stillhouse pools "
            "its last_hidden_state."
        )


def _default_prompt(path: Path, settings: Mapping[str, Any]) -> str:
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise ModelError(
            f"{path} names the default prompt {name!r}, but its prompts are "
            f"{', '.join(map(repr, prompts)) or 'none'}."
        )
    return prompts[name]


class Embeddings(Task[EmbeddingsTask]):
    """An embedding of each text, normalized unless the model does not; pairs are scored by cosine
    similarity."""

    head = "Body"
    output_kind = "embeddings"
    settings = EmbeddingSettings()  # of a model's folder, beyond the recipe

    def for_model(self, folder: Path, config: PretrainedConfig) -> "Embeddings":
        check_recipe_of(folder, self.recipe)
        found = Embeddings(self.recipe)
        found.settings = read_embedding_settings(folder) or found.settings
        return found

    def label_set(self, example: TextExample) -> set[float] | None:
        return None if example.pair is None else {example.target}

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
        sequences = iter(encode_texts(texts, tokenizer, self.recipe.max_length, as_number))
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
        similarity = self.settings.similarity
        if similarity not in ("cosine", "dot" if self.settings.normalize else ""):
            raise ModelError(
                f"The model's embeddings are compared by {similarity} "
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

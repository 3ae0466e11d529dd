"""Loads a model folder as the kind of model that it holds."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.families.registry import family_of
from stillhouse.inference.causal_lm import MAX_LENGTH, CausalLM
from stillhouse.inference.masked_lm import MaskedLM
from stillhouse.inference.task_model import TaskModel, task_model
from stillhouse.models.folder_check import load_config, load_model_tokenizer
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model
from stillhouse.models.special_ids import warn_of_ignored_settings
from stillhouse.models.task_models import head_of, load_task_model
from stillhouse.tasks.registry import task_of_model
from stillhouse.tasks.settings import TaskRecipe

CPU = torch.device("cpu")


def load(
    name: str | Path,
    *,
    offline: bool = False,
    device: str | torch.device = CPU,
    max_length: int = MAX_LENGTH,
) -> CausalLM | MaskedLM | TaskModel:
    """Load a model folder, a GGUF file, `sample`, `minilm`, `smollm2` or a hub name, in float32.

    Args:
        max_length: Limit of prompt and new tokens together, for causal models whose context is
            longer.

    Raises:
        ModelError: no such folder, or one that is not a complete model.
        NetworkError: a hub name that is not in the local cache, without a network.
    """
    folder, device = resolve_folder(str(name), offline=offline), torch.device(device)
    if head_of(load_config(folder)) is not None:
        return load_for_task(folder, device=device)
    tokenizer = load_model_tokenizer(folder)
    _, model = load_model(folder, tokenizer)
    warn_of_ignored_settings(folder)
    model.to(device)  # pyright: ignore[reportArgumentType]
    return language_model(model, tokenizer, max_length)


def language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, max_length: int = MAX_LENGTH
) -> CausalLM | MaskedLM:
    """A language model in memory with its tokenizer."""
    if family_of(model.config).language_modeling == "causal":
        return CausalLM(model, tokenizer, max_length)
    return MaskedLM(model, tokenizer)


def load_for_task(
    folder: Path, recipe: TaskRecipe | None = None, device: torch.device = CPU
) -> TaskModel:
    """The model of a folder for the task it was trained on.

    Args:
        recipe: How the task's data is read.

    Raises:
        ModelError: a model without the head of a task, or one that is not complete.
        RecipeError: another task than the model's.
    """
    task, tokenizer = task_of_model(folder, recipe), load_model_tokenizer(folder)
    model = load_task_model(folder, task.head, {}, tokenizer)
    model.to(device)  # pyright: ignore[reportArgumentType]
    return task_model(model, tokenizer, task)

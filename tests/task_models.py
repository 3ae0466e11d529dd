"""Tiny models with task heads, and tokenizers of each family."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tests.tiny_models import make_config
from transformers import PreTrainedTokenizerFast

from stillhouse.families.registry import family_named
from stillhouse.models.load import save_model
from stillhouse.models.task_models import TaskHead
from stillhouse.tokens.tokenizer_training import train_tokenizer

SENTENCES = (
    "The still turns what is thin into what is strong, drop by drop, and then once more.",
    "Who turns the still? The distiller of Islay does, in the old house by the sea.",
    "A cold wind, a warm fire: nobody asked, but everyone in London knew the answer was 1842.",
)
POSITIONS = 64


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's type, trained on SENTENCES."""
    texts, language_modeling = iter(SENTENCES * 3), family_named(family).language_modeling
    if family in ("bert", "distilbert"):
        return train_tokenizer("wordpiece", 100, texts, language_modeling)
    return train_tokenizer("byte_bpe", 290, texts, language_modeling)


def make_task_folder(folder: Path, family: str, head: TaskHead, **settings: Any) -> Path:
    """A model of 64 positions with random parameters, and its tokenizer."""
    tokenizer = make_tokenizer(family)
    config = make_config(family, vocabulary=len(tokenizer), positions=POSITIONS)
    for name, value in settings.items():
        setattr(config, name, value)
    pad = tokenizer.pad_token_id
    config.pad_token_id = config.eos_token_id if pad is None else pad
    name = "AutoModel" if head == "Body" else f"AutoModelFor{head}"
    torch.manual_seed(0)
    model = getattr(transformers, name).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_model(model, tokenizer, folder)
    return folder

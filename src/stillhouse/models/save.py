"""Saving a model folder: configuration, safetensors, generation configuration, tokenizer."""

import copy
import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.models.folder_check import fit_tokenizer
from stillhouse.models.special_ids import (
    CONFIG,
    GENERATION_CONFIG,
    end_token_ids,
    one_or_several,
    padding_id,
    read_settings,
)
from stillhouse.tokens.tokenizer import save_tokenizer


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder that transformers and Stillhouse load."""
    model.save_pretrained(folder)
    if model.can_generate():
        _write_end_tokens(model, folder)
    own = copy.deepcopy(tokenizer)
    fit_tokenizer(own, model.config)
    save_tokenizer(own, folder)


def _write_end_tokens(model: PreTrainedModel, folder: Path) -> None:
    """Write all end tokens to both files: some programs read one, some the other.

    (If they were set in the model's own generation configuration, transformers would refuse to save
    sampling defaults that it has loaded.)
    """
    ends = one_or_several(end_token_ids(model))
    for name in (CONFIG, GENERATION_CONFIG):
        settings = read_settings(folder / name) | {"eos_token_id": ends}
        if name == GENERATION_CONFIG:
            settings.pop("_from_model_config", None)
            settings.setdefault("bos_token_id", model.config.bos_token_id)
            settings.setdefault("pad_token_id", padding_id(model.config))
        (folder / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

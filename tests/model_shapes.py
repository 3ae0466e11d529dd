"""Model folders of any size with valid headers: the weights are a sparse file of zeros, the
tokenizer has made-up words."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PretrainedConfig, PreTrainedTokenizerFast

SPECIAL = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
    "cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>",
}  # fmt: skip


def write_shape(folder: Path, config: PretrainedConfig, model_class: str | None = None) -> Path:
    """A model folder with this configuration whose zero weights take no disk space."""
    name = (
        model_class
        or {
            "gpt2": "GPT2LMHeadModel",
            "bert": "BertForMaskedLM",
            "distilbert": "DistilBertForMaskedLM",
            "roberta": "RobertaForMaskedLM",
        }[config.model_type]
    )
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    config.architectures = [name]
    config.save_pretrained(folder)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, parameter in model.named_parameters():
        end = offset + 4 * parameter.numel()
        shape, offsets = list(parameter.shape), [offset, end]
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + offset)
    write_words(folder, config.vocab_size)
    return folder


def write_words(folder: Path, number: int) -> None:
    """A tokenizer with a vocabulary of `number` words."""
    words = [*SPECIAL.values(), *(f"w{place}" for place in range(number - len(SPECIAL)))]
    backend = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL).save_pretrained(folder)

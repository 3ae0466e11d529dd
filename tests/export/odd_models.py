"""The sample teacher made into models such as people have: untied, padded, with added tokens, other
attention scales, end tokens in one file alone."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, PreTrainedTokenizerFast

import stillhouse
from stillhouse.export.export import Check
from stillhouse.export.exported import Exported, Format, plain, vocabulary_of
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model, save_model
from stillhouse.tokens.tokenizer import load_tokenizer

Change = Callable[[Any, PreTrainedTokenizerFast], None]
END = 317  # a token of the sample teacher's greedy text


def odd_model(folder: Path, change: Change | None = None, **config: Any) -> Path:
    """The sample teacher, changed, saved as a model folder with these keys in its config.json."""
    source = resolve_folder("sample", offline=True)
    _, model = load_model(source)
    tokenizer = load_tokenizer(source)
    if change is not None:
        change(model, tokenizer)
    save_model(model, tokenizer, folder)
    edit_json(folder / "config.json", **config)
    return folder


def edit_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=1))


def parity_of(model: Path, to: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """How a model written in float32 compares in its engine, and the notes on it; as `export_model`
    does, without timing it."""
    loaded = stillhouse.load(model)
    exported = plain(loaded, vocabulary_of("model", loaded))
    assert format_named(to).refusal(exported) is None
    return parity_of_exported(exported, to, folder)


def format_named(to: str) -> Format:
    """An export format."""
    return getattr(importlib.import_module(f"stillhouse.export.to_{to}"), to.upper())


def parity_of_exported(
    exported: Exported, to: str, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """The same of a model in memory."""
    form = format_named(to)
    folder.mkdir()
    notes = form.write(exported, folder, "fp32")
    engine = form.open(exported, folder)
    assert engine is not None
    return Check("model", to, "fp32", exported).run(engine), notes


def untie(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """An output matrix of its own, near the embeddings."""
    del tokenizer
    weight = model.transformer.wte.weight.detach().clone()
    torch.manual_seed(0)
    noise = 0.3 * weight.std() * torch.randn_like(weight)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(weight + noise)


def pad(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """64 more embeddings than tokens, likelier than most tokens."""
    model.resize_token_embeddings(len(tokenizer) + 64, mean_resizing=False)
    with torch.no_grad():
        model.transformer.wte.weight[len(tokenizer) :] = model.transformer.wte.weight[END]


def add_tokens(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """A role, a special token, and a name with a space in it."""
    tokenizer.add_tokens(["<|user|>", "New York"])
    tokenizer.add_tokens([AddedToken("<|sep|>", special=True)], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        torch.manual_seed(0)
        new = model.transformer.wte.weight[-3:]
        new.copy_(model.transformer.wte.weight[100:103] + 0.01 * torch.randn_like(new))


def scale_attention(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Both scales of attention are others; the queries are those of the sample, so that its text
    still makes sense."""
    del tokenizer
    size = model.config.n_embd // model.config.n_head
    with torch.no_grad():
        for number, block in enumerate(model.transformer.h):
            ratio = 0.9 * (number + 1) / size**0.5
            block.attn.c_attn.weight[:, : model.config.n_embd] *= ratio
            block.attn.c_attn.bias[: model.config.n_embd] *= ratio
    model.config.scale_attn_weights = False
    model.config.scale_attn_by_inverse_layer_idx = True


def end_in_generation_config(folder: Path) -> Path:
    """A second end token, named in generation_config.json alone."""
    odd_model(folder)
    edit_json(folder / "generation_config.json", eos_token_id=[0, END])
    edit_json(folder / "config.json", eos_token_id=0)
    return folder


ODD_MODELS: dict[str, Callable[[Path], Path]] = {
    "untied": lambda folder: odd_model(folder, untie),
    "padded": lambda folder: odd_model(folder, pad),
    "added tokens": lambda folder: odd_model(folder, add_tokens),
    "scaled attention": lambda folder: odd_model(folder, scale_attention),
    "end tokens in generation_config.json": end_in_generation_config,
}

"""Checks a model folder: its configuration, its files, the names of its weights, its tokenizer.

No weights are read, only their headers, so `stillhouse check` can report the errors of `stillhouse
run` in advance. Of a configuration, settings that would only get in the way are normalized, and
those that ask for a computation outside the family are refused: transformers silently ignores keys
that it no longer knows, such as relative positions, and would compute another model.
"""

import contextlib
import json
import re
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import processors
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.activations import ACT2FN

from stillhouse.errors import ModelError
from stillhouse.families.base import Family
from stillhouse.families.registry import family_of
from stillhouse.models.special_ids import read_settings
from stillhouse.tokens.tokenizer import load_tokenizer, num_ids
from stillhouse.wording import first_line

# The files of a model folder that affect results: downloaded, fingerprinted, copied.
SETTINGS = ("*.json", "*.jinja", "*.model", "*.bpe", "vocab.txt", "merges.txt")
CARD = "README.md"
MEASUREMENTS = "measurements.json"  # what the numbers of a model card come from
SUBFOLDERS = ("[0-9]_*", "additional_chat_templates")  # modules of sentence-transformers; templates
ACTIVATIONS = ("activation_function", "hidden_act", "activation")
# How a model runs, not what it computes; other values break some caller.
NORMAL = {
    "chunk_size_feed_forward": 0,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "legacy": True,  # DeBERTa's head under the names of its class: see `Family.renamed_on_load`
}
WEIGHTS = "*.safetensors"
OTHER_WEIGHTS = ("pytorch_model*.bin", "*.h5", "*.msgpack", "*.ckpt*", "consolidated*")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# As they are read: float64 as float32.
FULL_PRECISION = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float32,
}
LFS_POINTER = b"version https://git-lfs"


def result_files(folder: Path) -> list[Path]:
    """The files of a model folder that affect its results, sorted."""
    places = [folder, *(place for pattern in SUBFOLDERS for place in folder.glob(pattern))]
    patterns = (WEIGHTS, *SETTINGS)
    found = {path for place in places for pattern in patterns for path in place.glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.name != MEASUREMENTS)


def load_config(folder: Path) -> PretrainedConfig:
    """The configuration of a model folder.

    Raises:
        ModelError: no `config.json`, one that cannot be read, or an unknown architecture.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json{_instead(folder)}."
        )
    try:
        model_type = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as a model configuration ({error!r}).") from error
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a hostile file can raise anything in the library
        raise ModelError(
            f"{file} is not a usable {model_type} configuration: {first_line(error)}"
        ) from error
    try:
        family = family_of(config)
        _settle(config, family)
        family.num_positions(config)
        if reason := family.supports(config):
            raise ModelError(reason)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error
    return config


def _instead(folder: Path) -> str:
    """What a folder without a configuration is, if it can be recognized."""
    if (folder / ADAPTER).is_file():
        return (
            "; it is a PEFT adapter. Merge it into its base model (merge_and_unload()), save that "
            "with save_pretrained(), and give its folder"
        )
    parts = sorted(file.parent for file in folder.glob("0_*/config.json"))
    return f"; its model is in {parts[0]}, give that folder" if parts else ""


def _no_safetensors(folder: Path, config: PretrainedConfig) -> str:
    others = sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    named = (config.architectures or [""])[0]
    model_class = named if hasattr(transformers, named) else family_of(config).model_class
    renamed = family_of(config).renamed_on_load
    mapping = f", key_mapping={dict(renamed)!r}" if renamed else ""
    if not others:
        return (
            f"{folder} has no weights; Stillhouse reads model.safetensors. Save the model with "
            "save_pretrained(). (Of a hub model that has pytorch_model.bin alone nothing is "
            f"fetched: save {model_class}.from_pretrained(NAME{mapping}) to a folder of your own.)"
        )
    target = folder.with_name(f"{folder.name}-safetensors")
    return (
        f"{folder} has only {', '.join(others[:3])}, which can run code when loaded or is of "
        "another library; Stillhouse reads model.safetensors. If you trust the file, convert it "
        f"with\n\n"
        f"    from transformers import AutoTokenizer, {model_class}\n"
        f"    {model_class}.from_pretrained({str(folder)!r}{mapping})"
        f".save_pretrained({str(target)!r})\n"
        f"    AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(target)!r})\n\n"
        f"and give {target}."
    )


def no_head(folder: Path, family: Family, config: PretrainedConfig, missing: list[str]) -> str:
    """The error message for a missing language modeling head."""
    kind = (config.architectures or ["model without a head"])[0]
    outputs = ("lm_head.weight", "decoder.weight", "decoder.bias", "vocab_projector.weight")
    if not config.tie_word_embeddings and all(name.endswith(outputs) for name in missing):
        return (
            f"{folder}/config.json has tie_word_embeddings false, but the weights there have no "
            f"output matrix of their own ({missing[0]}). Where it is the word embeddings again, as "
            "is usual, set tie_word_embeddings to true; otherwise save the model again."
        )
    target = folder.with_name(f"{folder.name}-with-head")
    return (
        f"{folder} is a {kind}: it has no {family.language_modeling} language modeling head "
        f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}), which a teacher or "
        f"student of language modeling needs. Give a checkpoint saved from {family.model_class}; "
        "or use this one as the start of a task (`finetuning.TASK.models.NAME.start`), which "
        "brings a head of its own; or save it with a new, random head by "
        f"{family.model_class}.from_pretrained({str(folder)!r}).save_pretrained({str(target)!r}) "
        "and train that first, with `teacher: {start: ..., training: ...}`."
    )


def load_model_tokenizer(folder: Path, source: Path | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, checked against the model's configuration.

    Args:
        source: Where the tokenizer is; None for the folder itself.

    Raises:
        ModelError: it has token ids without an embedding.
        DataError: no tokenizer, or an unusable one.
    """
    config, tokenizer = load_config(folder), load_tokenizer(source or folder)
    size = num_ids(tokenizer)
    if size > config.vocab_size:
        names = {number: name for name, number in tokenizer.get_vocab().items()}
        extra = [names[number] for number in sorted(names) if number >= config.vocab_size]
        raise ModelError(
            f"The tokenizer in {source or folder} has token ids up to {size - 1}, but its "
            f"model's embeddings end at {config.vocab_size - 1} (vocab_size {config.vocab_size}); "
            f"such as {', '.join(map(repr, extra[:3]))} they have no embedding. Where tokens were "
            f"added, call model.resize_token_embeddings({size}) and save the model again; "
            "otherwise give the model's own tokenizer."
        )
    fit_tokenizer(tokenizer, config)
    return tokenizer


def fit_tokenizer(tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig) -> None:
    """Set a tokenizer's `model_max_length` to the model's positions, the inputs that it makes to
    those that the model takes, and, for a masked model, the special tokens around a text that it
    was trained with."""
    family = family_of(config)
    positions = family.num_positions(config)
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    types = ["token_type_ids"] if reads_token_types(config) else []
    tokenizer.model_input_names = ["input_ids", *types, "attention_mask"]
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    bare = tokenizer.num_special_tokens_to_add() == 0
    if family.language_modeling == "masked" and bare and cls is not None and sep is not None:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[
                (str(token), tokenizer.get_vocab()[str(token)]) for token in (cls, sep)
            ],
        )


def reads_token_types(config: PretrainedConfig) -> bool:
    """Whether the model uses token types to distinguish the two texts of a pair."""
    return getattr(config, "type_vocab_size", 1) > 1


def _settle(config: PretrainedConfig, family: Family) -> None:
    """Normalize a configuration in place.

    Raises:
        ModelError: it asks for what Stillhouse does not compute; the message does not name the
            file.
    """
    quantized = getattr(config, "quantization_config", None)
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    activations = {key: getattr(config, key, None) for key in ACTIVATIONS}
    positions = getattr(config, "position_embedding_type", None)
    is_decoder = family.language_modeling == "masked" and getattr(config, "is_decoder", False)
    for is_refused, reason in (
        (
            quantized is not None,
            f"the model is quantized (quantization_config{f', {method}' if method else ''}); "
            "Stillhouse reads weights in full precision. Give the model before quantization, or "
            "save it after model.dequantize().",
        ),
        *(
            (
                name is not None and name not in ACT2FN,
                f"{key} is {name!r}, which is not an activation function; such as gelu, gelu_new.",
            )
            for key, name in activations.items()
        ),
        (
            positions not in (None, "absolute"),
            f"position_embedding_type is {positions!r}; Stillhouse, like transformers 5, supports "
            "only absolute positions.",
        ),
        (
            getattr(config, "pruned_heads", None),
            "pruned_heads names heads that are missing; give a model with all of its heads.",
        ),
        (
            getattr(config, "add_cross_attention", False),
            "add_cross_attention is true: the model attends to another model's states. Give one "
            "without cross-attention.",
        ),
        (
            getattr(config, "use_bidirectional_attention", False) is True,
            "use_bidirectional_attention is true: each token attends to those after it too, but "
            "models of this family are causal here. Give a language model.",
        ),
        (
            is_decoder,
            "is_decoder is true: each token attends only to those before it, but models of this "
            "family are bidirectional here. Give an encoder.",
        ),
    ):
        if is_refused:
            raise ModelError(reason)
    for name in [name for name in NORMAL if hasattr(config, name)]:
        setattr(config, name, NORMAL[name])
    # Where sdpa lacks a part of the computation, transformers offers eager attention alone.
    has_sdpa = getattr(transformers, family.model_class)._supports_sdpa
    config._attn_implementation = "sdpa" if has_sdpa else "eager"
    if isinstance(config.architectures, str):
        config.architectures = [config.architectures]


def differing_shapes(mismatched: Any) -> list[str]:
    """transformers' report of mismatched weights, as text."""
    return [
        f"{name} is {tuple(found)} in the file and {tuple(wanted)} by config.json"
        for name, found, wanted in sorted(mismatched)
    ]


def weight_names(folder: Path, config: PretrainedConfig) -> set[str]:
    """The names of the weights that transformers would load from a folder, from their headers.

    Raises:
        ModelError: no safetensors, a file or the index is missing or damaged, the weights are
            quantized, or the folder has an adapter as well.
    """
    return {name for file in _weight_files(folder, config) for name in _kinds_in(file)}


def weight_dtype(folder: Path, config: PretrainedConfig) -> torch.dtype:
    """The precision that holds all weights of the model in a folder, from their headers. (The
    configuration may name another one; weights that the model ignores may have another one.)

    Raises:
        ModelError: as `weight_names`.
    """
    ignored = family_of(config).ignored_on_load
    kinds = {
        kind
        for file in _weight_files(folder, config)
        for name, kind in _kinds_in(file).items()
        if not any(re.search(pattern, name) for pattern in ignored)
    }
    stored = [dtype for kind, dtype in FULL_PRECISION.items() if kind in kinds]
    return reduce(torch.promote_types, stored)


def _weight_files(folder: Path, config: PretrainedConfig) -> list[Path]:
    """`model.safetensors`, or the files of its index."""
    if not list(folder.glob(WEIGHTS)):
        raise ModelError(_no_safetensors(folder, config))
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder} has weights and {ADAPTER}, which would be added to them. Merge the adapter "
            "into the model (merge_and_unload()) and save that, or move the file away."
        )
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        found = ", ".join(sorted(path.name for path in folder.glob(WEIGHTS))[:3])
        raise ModelError(
            f"{folder} has {found}, but neither {WHOLE} nor {INDEX}, which says what is in which "
            f"file. Fetch the index too, or rename a single file to {WHOLE}."
        )
    shards = read_settings(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(
            f"{folder / INDEX} has no weight_map from weights to their files. Fetch it again."
        )
    files = sorted(set(shards.values()))
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise ModelError(
            f"The weights in {folder} are not complete: {', '.join(absent[:3])} is missing, which "
            f"{INDEX} names. Fetch it again."
        )
    return [folder / file for file in files]


def _kinds_in(file: Path) -> dict[str, str]:
    """The weights of a file, and the precision of each."""
    try:
        with safe_open(file, "pt") as weights:
            kinds = {name: str(weights.get_slice(name).get_dtype()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(_unreadable(file, error)) from error
    # Buffers may be integers: old checkpoints have masks and positions.
    quantized = sorted(
        name
        for name, kind in kinds.items()
        if name.endswith(".weight") and kind not in FULL_PRECISION
    )
    if quantized:
        raise ModelError(
            f"{file} holds quantized weights ({quantized[0]} is {kinds[quantized[0]]}); Stillhouse "
            "reads float16, bfloat16, float32 and float64. Give the model before quantization."
        )
    return kinds


def _unreadable(file: Path, error: Exception) -> str:
    with contextlib.suppress(OSError), file.open("rb") as content:
        if content.read(len(LFS_POINTER)) == LFS_POINTER:
            return f"{file} is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`."
    return (
        f"The weights in {file.parent} cannot be loaded: {file.name}: {first_line(error)}. Fetch "
        "them, or save them, again."
    )

"""Checks a model folder: its files, the names of its weights, its tokenizer.

No weights are read, so `stillhouse check` can report the errors of `stillhouse run` in advance.
"""

import json
from pathlib import Path

import transformers
from tokenizers import processors
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.errors import ModelError
from stillhouse.families.base import Family
from stillhouse.families.registry import family_of
from stillhouse.models.config_check import empty_model_of, first_line, settle_config
from stillhouse.models.special_ids import end_token_ids
from stillhouse.models.weight_files import OTHER_WEIGHTS, WEIGHTS, read_weight_names
from stillhouse.tokens.tokenizer import load_tokenizer, num_ids, tokenizer_files

# The files of a model folder that affect results: downloaded, fingerprinted, copied.
SETTINGS = ("*.json", "*.jinja", "*.model", "*.bpe", "vocab.txt", "merges.txt")
SUBFOLDERS = ("[0-9]_*", "additional_chat_templates")  # modules of sentence-transformers; templates


def result_files(folder: Path) -> list[Path]:
    """The files of a model folder that affect its results, sorted."""
    places = [folder, *(place for pattern in SUBFOLDERS for place in folder.glob(pattern))]
    patterns = (WEIGHTS, *SETTINGS)
    found = {path for place in places for pattern in patterns for path in place.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def check_folder(folder: Path, *, needs_weights: bool = True, head: bool = True) -> None:
    """Check that a model folder can be loaded for language modeling.

    Args:
        needs_weights: Require weights; otherwise a configuration is enough, and weights are
            checked if there are any.
        head: Require the language modeling head; tasks have their own head.

    Raises:
        ModelError: an unsupported configuration, weights that are not safetensors, no head, or a
            tokenizer with more ids than embeddings.
        DataError: an unusable tokenizer.
    """
    config = load_config(folder)
    end_token_ids(folder)
    others = [path for pattern in OTHER_WEIGHTS for path in folder.glob(pattern)]
    if needs_weights or others or list(folder.glob(WEIGHTS)):
        names = weight_names(folder, config)
        if head:
            check_head(folder, config, names)
    if tokenizer_files(folder):
        load_model_tokenizer(folder)


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
        settle_config(config, family.language_modeling)
        family.num_positions(config)
        if reason := family.supports(config):
            raise ModelError(reason)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error
    return config


def _instead(folder: Path) -> str:
    """What a folder without a configuration is, if it can be recognized."""
    if (folder / "adapter_config.json").is_file():
        return (
            "; it is a PEFT adapter. Merge it into its base model (merge_and_unload()), save that "
            "with save_pretrained(), and give its folder"
        )
    parts = sorted(file.parent for file in folder.glob("0_*/config.json"))
    return f"; its model is in {parts[0]}, give that folder" if parts else ""


def weight_names(folder: Path, config: PretrainedConfig) -> set[str]:
    """The names of the weights in a folder, from their headers.

    Raises:
        ModelError: no safetensors, or unreadable ones; see `read_weight_names`.
    """
    if not list(folder.glob(WEIGHTS)):
        raise ModelError(_no_safetensors(folder, config))
    return read_weight_names(folder)


def _no_safetensors(folder: Path, config: PretrainedConfig) -> str:
    others = sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    named = (config.architectures or [""])[0]
    known = hasattr(transformers, named) if named else False
    model_class = named if known else family_of(config).model_class
    if not others:
        return (
            f"{folder} has no weights; Stillhouse reads model.safetensors. Save the model with "
            "save_pretrained(). (Of a hub model that has pytorch_model.bin alone nothing is "
            f"fetched: save {model_class}.from_pretrained(NAME) to a folder of your own.)"
        )
    target = folder.with_name(f"{folder.name}-safetensors")
    return (
        f"{folder} has only {', '.join(others[:3])}, which can run code when loaded or is of "
        "another library; Stillhouse reads model.safetensors. If you trust the file, convert it "
        f"with\n\n"
        f"    from transformers import AutoTokenizer, {model_class}\n"
        f"    {model_class}.from_pretrained({str(folder)!r}).save_pretrained({str(target)!r})\n"
        f"    AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(target)!r})\n\n"
        f"and give {target}."
    )


def check_head(folder: Path, config: PretrainedConfig, names: set[str]) -> None:
    """Check that the weights include the language modeling head.

    Raises:
        ModelError: they do not.
    """
    family = family_of(config)
    model = empty_model_of(getattr(transformers, family.model_class), config, folder)
    aliases: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), set()).add(name)
    known = {name.replace("gamma", "weight").replace("beta", "bias") for name in names}
    body = f"{family.body}."
    missing = [
        min(own)
        for own in aliases.values()
        if not own & known and not any(name.startswith(body) for name in own)
    ]
    if missing:
        raise ModelError(no_head(folder, family, config, sorted(missing)))


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


def load_model_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, checked against the model's configuration.

    Raises:
        ModelError: it has token ids without an embedding.
        DataError: no tokenizer, or an unusable one.
    """
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    size = num_ids(tokenizer)
    if size > config.vocab_size:
        names = {number: name for name, number in tokenizer.get_vocab().items()}
        extra = [names[number] for number in sorted(names) if number >= config.vocab_size]
        raise ModelError(
            f"The tokenizer in {folder} has token ids up to {size - 1}, but its model's embeddings "
            f"end at {config.vocab_size - 1} (vocab_size {config.vocab_size}); such as "
            f"{', '.join(map(repr, extra[:3]))} they have no embedding. Where tokens were added, "
            f"call model.resize_token_embeddings({size}) and save the model again; otherwise give "
            "the model's own tokenizer."
        )
    fit_tokenizer(tokenizer, config)
    return tokenizer


def fit_tokenizer(tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig) -> None:
    """Set a tokenizer's `model_max_length` to the model's positions, and, for a masked model, the
    special tokens around a text that it was trained with."""
    family = family_of(config)
    positions = family.num_positions(config)
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
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

"""Special token ids of a model folder: end of text and padding.

`config.json` and `generation_config.json` may each name one token, several, or none; published
models have some of their end tokens only in the second file.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from stillhouse.errors import ModelError

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
KEY = "eos_token_id"
IGNORED_SETTINGS = (
    "bad_words_ids", "begin_suppress_tokens", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "sequence_bias", "suppress_tokens",
)  # fmt: skip


def end_token_ids(source: Path | PreTrainedModel) -> frozenset[int]:
    """The tokens that end a text: the union of both files of a model folder, or of a model's
    configuration and generation configuration. Empty if neither names one.

    Raises:
        ModelError: an unreadable file, or a value that is not a token id.
    """
    if isinstance(source, Path):
        _check_generation_config(source / GENERATION_CONFIG)
        named = {
            str(source / file): read_settings(source / file).get(KEY)
            for file in (CONFIG, GENERATION_CONFIG)
        }
    else:
        named = {
            "The model's configuration": source.config.eos_token_id,
            "The model's generation configuration": getattr(
                getattr(source, "generation_config", None), KEY, None
            ),
        }
    return frozenset(id for where, value in named.items() for id in _ids(value, where))


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a JSON file of a model folder; empty if there is no such file.

    Raises:
        ModelError: not a JSON object.
    """
    return read_json(file, dict) if file.is_file() else {}


def read_json(file: Path, kind: type) -> Any:
    """The content of a JSON file of a model folder.

    Raises:
        ModelError: not JSON, or of another kind than `dict` or `list`.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({error}). Download or save it again.") from error
    if not isinstance(content, kind):
        name = "object" if kind is dict else "array"
        raise ModelError(f"{file} is not a JSON {name}. Download or save it again.")
    return content


def padding_id(config: PretrainedConfig) -> int:
    """The padding token. Padding is always masked, so any token will do if the configuration does
    not name a valid one."""
    named = (config.pad_token_id, config.eos_token_id)
    ids = [id for value in named for id in (value if isinstance(value, list) else [value])]
    known = range(config.vocab_size)
    return next((id for id in ids if isinstance(id, int) and id in known), 0)


def one_or_several(ids: frozenset[int]) -> int | list[int] | None:
    """Token ids as transformers writes them: a number, a list, or null."""
    ordered = sorted(ids)
    return ordered[0] if len(ordered) == 1 else ordered or None


def take_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Give a causal model the generation configuration of a folder, if it has one: end tokens, and
    the sampling defaults that the model was published with."""
    if model.can_generate() and read_settings(folder / GENERATION_CONFIG):
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


@contextmanager
def without_generation_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model.generate` uses only its arguments and the end tokens: temperature and
    penalties of the folder's `generation_config.json` are ignored."""
    before = model.generation_config
    ends = one_or_several(end_token_ids(model))
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=ends,  # pyright: ignore[reportArgumentType]
        pad_token_id=padding_id(model.config),
    )
    try:
        yield
    finally:
        model.generation_config = before


def warn_of_ignored_settings(folder: Path) -> None:
    """Warn of settings in a folder's `generation_config.json` that restrict tokens and are not
    supported."""
    file = folder / GENERATION_CONFIG
    settings = read_settings(file)
    if names := [name for name in IGNORED_SETTINGS if settings.get(name) not in (None, 0, [], {})]:
        warnings.warn(
            f"{file} asks for {', '.join(names)}, which Stillhouse does not follow: transformers' "
            "generate() gives other tokens.",
            stacklevel=4,
        )


def _check_generation_config(file: Path) -> None:
    try:
        GenerationConfig.from_dict(read_settings(file) | {KEY: None})
    except ModelError:
        raise
    except Exception as error:  # a hostile file can raise anything in the library
        raise ModelError(f"{file} cannot be used: {error}. Download or save it again.") from error


def _ids(value: Any, where: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    wrong = [id for id in ids if isinstance(id, bool) or not isinstance(id, int) or id < 0]
    if wrong:
        raise ModelError(
            f"{where} names {wrong[0]!r} as a special token; it takes a token id, a list of them, "
            "or null."
        )
    return ids

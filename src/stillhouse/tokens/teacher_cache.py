"""The teacher cache on disk: a teacher's outputs for the rows of a training split.

    teacher-cache/part-00000/counts.bin     uint32: rows of each sequence of the part
                             ids.bin        uint16 (uint32 above 65,536 entries): k tokens per row
                             weights.bin    float16: their weights times 2^15
                             rest.bin       float32: one number per row (see `SparseRows`)
                             hidden.bin     float16, only where a loss needs it: D numbers per row
                             manifest.json

All little-endian. Each part is committed atomically, so that writing resumes where it stopped;
`teacher-cache/manifest.json` is written last and lists the files of every part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from stillhouse.errors import DataError
from stillhouse.runs.manifest import read_manifest
from stillhouse.section import Rows
from stillhouse.tokens.batches import Batch, SequenceSource, SparseRows, TeacherRows
from stillhouse.tokens.settings import CacheKind
from stillhouse.tokens.shards import token_dtype

WEIGHT_SCALE = 2.0**15  # keeps float16's full precision down to probabilities of 2e-9
FIXED_SEED, FIXED_EPOCH = 0, 0  # the cached outputs are those for the masks of this sample


@dataclass(frozen=True)
class CacheFormat:
    """The layout of a cache's rows."""

    kind: CacheKind
    size: int
    rows: Rows
    vocabulary_size: int
    hidden_size: int | None
    sequences_per_part: int

    def columns(self) -> dict[str, tuple[np.dtype, int]]:
        """Type and width of each file that holds rows."""
        columns = {
            "ids": (token_dtype(self.vocabulary_size), self.size),
            "weights": (np.dtype("<f2"), self.size),
            "rest": (np.dtype("<f4"), 1),
        }
        if self.hidden_size is not None:
            columns["hidden"] = (np.dtype("<f2"), self.hidden_size)
        return columns

    @property
    def bytes_per_row(self) -> int:
        return sum(dtype.itemsize * width for dtype, width in self.columns().values())


def part_folder(cache: Path, part: int) -> Path:
    return cache / f"part-{part:05d}"


def write_rows(folder: Path, outputs: TeacherRows, counts: np.ndarray, layout: CacheFormat) -> None:
    """Write the files of one part.

    Raises:
        DataError: a hidden state is NaN, infinity or beyond float16.
    """
    targets = outputs.targets
    arrays = {"ids": targets.ids, "weights": targets.weights * WEIGHT_SCALE, "rest": targets.rest}
    if outputs.hidden is not None:
        arrays["hidden"] = outputs.hidden
    counts.astype("<u4").tofile(folder / "counts.bin")
    for name, (dtype, _) in layout.columns().items():
        with np.errstate(over="ignore"):  # overflow is refused below
            values = arrays[name].numpy().astype(dtype)
        if dtype.kind == "f" and not np.isfinite(values).all():
            raise DataError(
                f"The teacher's outputs cannot be cached: {name} holds NaN, infinity or a "
                "number beyond float16's range (65,504). Set distillation.teacher_outputs to live."
            )
        values.tofile(folder / f"{name}.bin")


class TeacherCache:
    """Reads the cached rows of any sequences."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        if manifest is None:
            raise DataError(f"{folder} is not complete: it has no manifest.json.")
        self.folder = folder
        self.layout = CacheFormat(**manifest.facts["format"])
        num_parts = manifest.facts["num_parts"]
        counts = map(self._counts, range(num_parts))
        self._first_rows = [np.concatenate([[0], np.cumsum(rows)]) for rows in counts]

    @property
    def num_rows(self) -> int:
        return int(sum(rows[-1] for rows in self._first_rows))

    def rows(self, sequences: np.ndarray) -> TeacherRows:
        """The rows of the given sequences, in that order."""
        columns = self.layout.columns()
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in columns}
        for sequence in sequences.tolist():
            part, place = divmod(sequence, self.layout.sequences_per_part)
            first, stop = self._first_rows[part][place : place + 2]
            for name, (dtype, width) in columns.items():
                piece = np.fromfile(
                    part_folder(self.folder, part) / f"{name}.bin",
                    dtype,
                    count=int(stop - first) * width,
                    offset=int(first) * width * dtype.itemsize,
                )
                pieces[name].append(piece.reshape(-1, width))
        found = {name: np.concatenate(arrays) for name, arrays in pieces.items()}
        targets = SparseRows(
            self.layout.kind,
            torch.from_numpy(found["ids"].astype(np.int64)),
            torch.from_numpy(found["weights"].astype(np.float32)) / WEIGHT_SCALE,
            torch.from_numpy(found["rest"][:, 0]),
        )
        hidden = torch.from_numpy(found["hidden"]).float() if "hidden" in found else None
        return TeacherRows(self.layout.rows, targets, hidden)

    def _counts(self, part: int) -> np.ndarray:
        """The number of rows of each sequence of a part, whose file sizes are checked."""
        folder = part_folder(self.folder, part)
        counts = np.fromfile(folder / "counts.bin", "<u4").astype(np.int64)
        for name, (dtype, width) in self.layout.columns().items():
            size = (folder / f"{name}.bin").stat().st_size
            if size != counts.sum() * width * dtype.itemsize:
                raise DataError(
                    f"{folder / name}.bin is damaged: {size} bytes for {counts.sum()} rows. Move "
                    f"{self.folder} away to write it again."
                )
        return counts


@dataclass(frozen=True)
class FixedMaskSource:
    """A source whose sequences have the same masks for every epoch and seed."""

    source: SequenceSource
    cache: TeacherCache | None = None

    @property
    def num_sequences(self) -> int:
        return self.source.num_sequences

    @property
    def sequence_length(self) -> int:
        return self.source.sequence_length

    @property
    def parts(self) -> Mapping[str, range]:
        return self.source.parts

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """The sequences with the masks of the cache and, where it is given, its rows."""
        fixed = np.full_like(epochs, FIXED_EPOCH)
        batch = self.source.batch(sequences, fixed, FIXED_SEED)
        return batch if self.cache is None else replace(batch, teacher=self.cache.rows(sequences))

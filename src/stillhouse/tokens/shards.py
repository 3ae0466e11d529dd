"""Token shards: the tokens of a split on disk, as plain memory-mapped arrays.

Files of a tokens folder, all little-endian:

    train-00000.bin    tokens of whole documents, uint16 (uint32 above 65,536 vocabulary entries)
    train-00000.idx    uint64: where each document starts within the shard, and the shard's end
    validation-00000.bin, .idx
    train-counts.bin   uint64[vocabulary_size]: how often each token occurs in the training split

A causal document is stored as [*document_prefix, t1, ..., tn], a masked one as [t1, ..., tn].
Contract: a document never spans two shards; one without tokens is counted, but not stored. The
documents of a part of the text follow each other; the manifest has the number of each part.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stillhouse.errors import DataError
from stillhouse.runs.manifest import Manifest, read_manifest

TOKENS_PER_SHARD = 100_000_000
BUFFERED_TOKENS = 2**18
COUNTS = "train-counts.bin"


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The smallest type that holds every token id."""
    return np.dtype("<u2" if vocabulary_size <= 2**16 else "<u4")


class ShardWriter:
    """Writes one split in bounded memory; a context manager.

    Args:
        document_prefix: The token ids before each document; see `SpecialTokens.document_prefix`.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        vocabulary_size: int,
        document_prefix: Sequence[int] = (),
        tokens_per_shard: int = TOKENS_PER_SHARD,
    ) -> None:
        self.counts = np.zeros(vocabulary_size, "<u8")
        self.shards: list[str] = []
        self.num_tokens = 0
        self.num_documents = self.empty_documents = 0  # with tokens, and without
        self._folder, self._split = folder, split
        self._dtype = token_dtype(vocabulary_size)
        self.document_prefix = tuple(document_prefix)
        self._tokens_per_shard = tokens_per_shard
        self._file: BinaryIO | None = None
        self._starts = array("Q")
        self._shard_tokens = 0
        self._buffer: list[np.ndarray] = []
        self._buffered = 0
        self._is_empty = False  # the current document, so far

    def add(self, ids: np.ndarray, *, starts_document: bool) -> None:
        """Append tokens to the current document, or to a new one."""
        if starts_document:
            self.empty_documents += self._is_empty
            self._is_empty = True
        if not len(ids):
            return
        if self._is_empty:
            self._is_empty = False
            if self._shard_tokens >= self._tokens_per_shard:
                self._end_shard()
            self._file = self._file or self._path("bin").open("wb")
            self._starts.append(self._shard_tokens)
            self.num_documents += 1
            ids = np.concatenate([np.array(self.document_prefix, np.int64), ids])
        self._buffer.append(ids)
        self._buffered += len(ids)
        self._shard_tokens += len(ids)
        self.num_tokens += len(ids)
        if self._buffered >= BUFFERED_TOKENS:
            self._flush()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, error: object, *details: object) -> None:
        try:
            if error is None:
                self.empty_documents += self._is_empty
                self._end_shard()
        finally:
            if self._file is not None:
                self._file.close()

    def _flush(self) -> None:
        ids = np.concatenate([*self._buffer, np.empty(0, np.int64)])
        assert self._file is not None
        assert int(ids.max(initial=0)) < len(self.counts)
        self._file.write(ids.astype(self._dtype).tobytes())
        self.counts += np.bincount(ids, minlength=len(self.counts)).astype("<u8")
        self._buffer, self._buffered = [], 0

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._flush()
        self._file.close()
        self._file = None
        starts = np.array([*self._starts, self._shard_tokens], "<u8")
        self._path("idx").write_bytes(starts.tobytes())
        self.shards.append(self._path("bin").stem)
        self._starts, self._shard_tokens = array("Q"), 0

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._split}-{len(self.shards):05d}.{suffix}"


@dataclass(frozen=True)
class TokenSplit:
    """One memory-mapped split, with positions counted over all shards.

    Args:
        document_starts: One more entry than there are documents: the last is the number of tokens.
        counts: Token counts of the training split, whichever split this is.
        paths: The file of each shard; none of a split in memory.
        parts: The number of documents of each part of the text, in order; none of a text without
            parts.
    """

    vocabulary_size: int
    shards: tuple[np.ndarray, ...]
    document_starts: np.ndarray
    counts: np.ndarray
    paths: tuple[Path, ...] | None = None
    parts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def in_memory(cls, documents: Sequence[np.ndarray], vocabulary_size: int) -> "TokenSplit":
        """Documents of token ids, at least one token in all, as a training split."""
        ids = np.concatenate(documents)
        assert 0 <= ids.min() <= ids.max() < vocabulary_size
        starts = np.cumsum([0, *map(len, documents)]).astype(np.uint64)
        counts = np.bincount(ids, minlength=vocabulary_size).astype(np.uint64)
        return cls(vocabulary_size, (ids,), starts, counts)

    @property
    def num_tokens(self) -> int:
        return int(self.document_starts[-1])

    @property
    def num_documents(self) -> int:
        return len(self.document_starts) - 1

    @property
    def part_bounds(self) -> np.ndarray:
        """The number of the first document of each part, with the number of documents at the end;
        a text without parts is one."""
        return np.cumsum([0, *(self.parts.values() or [self.num_documents])])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` (not included) as int64.

        Raises:
            DataError: a shard holds an id beyond the vocabulary.
        """
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        tokens = np.empty(stop - start, np.int64)
        first = 0  # position of the shard's first token
        for number, shard in enumerate(self.shards):
            begin, end = max(start, first), min(stop, first + len(shard))
            if begin < end:
                part = shard[begin - first : end - first]
                if self.paths is not None and int(part.max()) >= self.vocabulary_size:
                    path = self.paths[number]
                    raise DataError(
                        f"{path} is damaged: it holds the token {int(part.max())}, but the "
                        f"vocabulary has {self.vocabulary_size}. {_advice(path)}"
                    )
                tokens[begin - start : end - start] = part
            first += len(shard)
        return tokens


def open_split(tokens_folder: Path, split: str) -> TokenSplit:
    """Open a split, whose files must have the sizes in the manifest.

    Raises:
        DataError: a file is missing, of another size, or its index is not one of documents.
    """
    manifest = read_manifest(tokens_folder)
    if manifest is None:
        raise DataError(f"{tokens_folder} has no tokens yet. Run `stillhouse prepare RECIPE`.")
    facts = manifest.facts
    opened: list[np.ndarray] = []
    starts = [np.zeros(1, np.uint64)]
    own = facts["splits"][split]
    paths = tuple(tokens_folder / f"{name}.bin" for name in own["shards"])
    for path in paths:
        tokens = _sized_file(path, np.dtype(facts["dtype"]).newbyteorder("<"), manifest)
        index = _sized_file(path.with_suffix(".idx"), np.dtype("<u8"), manifest)
        _check_index(index, path.with_suffix(".idx"), len(tokens))
        opened.append(tokens)
        starts.append(index[1:] + starts[-1][-1])
    counts = np.array(_sized_file(tokens_folder / COUNTS, np.dtype("<u8"), manifest))
    parts = {name: part["documents"] for name, part in own.get("parts", {}).items()}
    size = facts["vocabulary_size"]
    return TokenSplit(size, tuple(opened), np.concatenate(starts), counts, paths, parts)


def _sized_file(path: Path, dtype: np.dtype, manifest: Manifest) -> np.ndarray:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing, although the manifest beside it lists it. {_advice(path)}"
        ) from error
    expected = manifest.files[path.name]["size_bytes"]
    if size != expected:
        raise DataError(f"{path} is damaged: {size} bytes, expected {expected}. {_advice(path)}")
    return np.memmap(path, dtype, mode="r", shape=(size // dtype.itemsize,))


def _check_index(index: np.ndarray, path: Path, num_tokens: int) -> None:
    if index[0] != 0 or index[-1] != num_tokens or (index[1:] <= index[:-1]).any():
        raise DataError(
            f"{path} is damaged: its document starts do not increase from 0 to {num_tokens}. "
            f"{_advice(path)}"
        )


def _advice(path: Path) -> str:
    return f"Move {path.parent} away; `stillhouse prepare` writes it again."

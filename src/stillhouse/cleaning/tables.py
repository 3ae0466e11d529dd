"""Files of documents between the stages of cleaning, and what is left of them at the end.

id, url, language, text    of each document, in Parquet (zstd)
id, url, text, html        of a piece, in Arrow's stream format (zstd)
step, reason, id, url, text    of what a step left out, in Parquet (zstd)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

from stillhouse.cleaning.step import Page

REJECTED = "rejected.parquet"
BATCH_BYTES = 4 * 2**20
BATCH_ROWS = 4096
KEPT_COLUMNS = ("id", "url", "language", "text")
PIECE_COLUMNS = ("id", "url", "text", "html")
REJECTED_COLUMNS = ("step", "reason", "id", "url", "text")


class TableWriter:
    """Writes rows of strings to a Parquet file or, where it ends in `.arrow`, an Arrow stream, in
    batches of a few megabytes."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        # A text of over 2 GiB in one batch would need larger offsets; none is that long.
        self._schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
        if path.suffix == ".arrow":
            options = ipc.IpcWriteOptions(compression="zstd")
            self._writer: Any = ipc.new_stream(str(path), self._schema, options=options)
        else:
            self._writer = parquet.ParquetWriter(
                path, self._schema, compression="zstd", write_statistics=False, store_schema=False
            )
        self._rows: list[tuple[str | None, ...]] = []
        self._size = 0

    def add(self, row: tuple[str | None, ...]) -> None:
        self._rows.append(row)
        self._size += sum(len(value) for value in row if value)
        if self._size >= BATCH_BYTES or len(self._rows) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pyarrow.array(column, pyarrow.string()) for column in zip(*self._rows, strict=True)
            ]
            self._writer.write_batch(pyarrow.record_batch(columns, schema=self._schema))
        self._rows.clear()
        self._size = 0

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()


def read_rows(path: Path) -> Iterator[tuple[Any, ...]]:
    """The rows of a file, in bounded memory."""
    if path.suffix == ".arrow":
        with pyarrow.OSFile(str(path), "r") as file, ipc.open_stream(file) as batches:
            for batch in batches:
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    else:
        with parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as table:
            for batch in table.iter_batches(256, use_threads=False):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def piece_row(page: Page) -> tuple[str | None, ...]:
    return page.id, page.url, page.text, page.html


def page_of_piece(row: tuple[Any, ...]) -> Page:
    return Page(row[0], row[2], row[1], row[3])

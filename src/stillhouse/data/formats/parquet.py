"""Parquet, read in small batches of rows."""

import json
from collections.abc import Iterator, Mapping

from stillhouse.data.formats import Format, Record, TableFile, class_names, with_class_names
from stillhouse.data.text import reading
from stillhouse.errors import DataError

ROWS_PER_READ = 32  # few, since one row may be a whole book


def read_parquet(file: TableFile) -> Iterator[Record]:
    """The rows of a table, with the names of classes that the library `datasets` stored."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with (
            reading(file.path),
            parquet.ParquetFile(file.path, buffer_size=2**20, pre_buffer=False) as table,
        ):
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{file.name} names a column twice: {', '.join(names)}.")
            has_first = bool(file.columns) and file.columns[0] in names
            wanted = [name for name in names if not has_first or name in file.columns]
            classes = _classes(table.schema_arrow.metadata or {})
            for batch in table.iter_batches(ROWS_PER_READ, columns=wanted, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    values = {name: batch[name][row].as_py() for name in wanted}
                    fields = with_class_names(values, classes)
                    yield Record(f"{file.name} row {number}", number, fields)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.name} is not a readable Parquet file: {error} (after row {number}). "
            "Fetch or write it again."
        ) from error


def _classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The class names of each column of classes, where the library `datasets` wrote the file."""
    try:
        return class_names(json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"])
    except (ValueError, KeyError, TypeError, AttributeError):  # written by another program
        return {}


FORMATS = (
    Format(
        "Parquet",
        (".parquet",),
        read_records=read_parquet,
        by_line=False,
        has_lists=True,
        documents="one document per row",
        rows="one example per row; class names are read as `datasets` stores them",
    ),
)

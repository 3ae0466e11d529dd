"""SQLite databases, opened read-only.

Contract: the rows are those of the one table or view with the column of the text, in the order in
which they are stored; `TABLE.COLUMN` names a column that several have. Nothing is written, neither
to the file nor beside it. Only what the file itself holds is read, since the file tells whether its
content has changed: a database whose last changes are in a write-ahead log beside it is refused.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

from stillhouse.data.formats import Format, Record, TableFile
from stillhouse.data.text import reading
from stillhouse.errors import DataError

MAGIC = b"SQLite format 3\0"
WAL_MODE = b"\2\2"  # the header's two bytes after the page size
LOCK_SECONDS = 5.0  # how long to wait for a program that writes
IS_TEXT = re.compile("CHAR|CLOB|TEXT", re.IGNORECASE)  # of declared types, SQLite's own rule
TABLES = r"""
SELECT name FROM sqlite_master
WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\_%' ESCAPE '\'
"""


def read_sqlite(file: TableFile) -> Iterator[Record]:
    """The rows of the table with the column of the text."""
    number = 0
    try:
        with closing(_connect(file)) as database:
            table, columns = _find_table(database, file)
            wanted = [key for key in columns if not file.columns or key in file.columns]
            names = ", ".join(_quoted(columns[key]) for key in wanted)
            # An index has another order, and SQLite may read from one that covers the columns.
            for values in database.execute(f"SELECT {names} FROM {_quoted(table)} NOT INDEXED"):
                number += 1
                fields = dict(zip(wanted, values, strict=True))
                yield Record(f"{file.name} row {number}", number, fields)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name} row {number + 1} holds text that is not UTF-8: byte {error.start} is "
            f"0x{error.object[error.start]:02x} ({error.reason}). Correct the row, or leave it out."
        ) from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            raise DataError(
                f"{file.name} is locked by another program, which writes it. Try again when that "
                "is done."
            ) from error
        raise DataError(
            f"{file.name} is not a readable SQLite database: {error} (after row {number}). Fetch "
            "or write it again."
        ) from error


def _connect(file: TableFile) -> sqlite3.Connection:
    path = file.path.resolve()  # the log is beside the target of a link
    log = path.with_name(f"{path.name}-wal")
    with reading(file.path), path.open("rb") as content:
        header = content.read(20)
        has_log = log.exists()
        if has_log and log.stat().st_size:
            raise DataError(
                f"{file.name} is not complete: its last changes are in {log.name}, beside it. "
                "Close the programs that use it, or read a copy, which "
                f"`sqlite3 {path.name} \"VACUUM INTO 'copy.sqlite'\"` makes."
            )
    if not header.startswith(MAGIC):
        raise DataError(
            f"{file.name} is not a SQLite database: its first bytes are not those of one. "
            "Decompress it if it is compressed; otherwise leave it out."
        )
    # In this mode SQLite would leave a log beside a file that nobody uses, which has none.
    mode = "ro&immutable=1" if header.endswith(WAL_MODE) and not has_log else "ro"
    database = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=LOCK_SECONDS, check_same_thread=False
    )
    database.text_factory = bytes.decode  # errors name the row
    return database


def _find_table(database: sqlite3.Connection, file: TableFile) -> tuple[str, dict[str, str]]:
    """The table with the column of the text, and its columns: their names by those in records."""
    names = database.execute(TABLES).fetchall()
    tables = {table: _columns_of(table, database) for (table,) in names}
    columns = [(table, column) for table, names in tables.items() for column in names]
    found = [each for each in columns if file.column in (each[1], ".".join(each))]
    if len(found) == 1:
        table, text = found[0]
        return table, {file.column if name == text else name: name for name in tables[table]}
    if not columns:
        raise DataError(f"{file.name} holds no tables. Give a database with some.")
    number = f"{len(found)} tables" if found else "no table"
    texts = [each for each in columns if IS_TEXT.search(tables[each[0]][each[1]])]
    example = ".".join((found or texts or columns)[0])
    listed = "; ".join(f"{table} ({', '.join(names)})" for table, names in tables.items())
    raise DataError(
        f"{file.name} has {number} with a column {file.column!r}. Its tables and their columns: "
        f"{listed}. Give the column of the text with its table, such as "
        f"{example}: in corpus.text_field, or as the column of a task."
    )


def _columns_of(table: str, database: sqlite3.Connection) -> dict[str, str]:
    """The columns of a table with their declared types."""
    try:
        return dict(database.execute("SELECT name, type FROM pragma_table_info(?)", [table]))
    except sqlite3.OperationalError:  # a view of what is gone, or a table of an unknown extension
        return {}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


FORMATS = (
    Format(
        "SQLite",
        (".sqlite", ".sqlite3", ".db"),
        read_records=read_sqlite,
        by_line=False,
        documents="one document per row of the table that has the column `corpus.text_field` "
        "(`TABLE.COLUMN` if several have it), in the order in which they are stored",
        rows="one example per row of the table that has the column of the text",
    ),
)
